"""Evaluation: both evaluators agree to the bit, recorded figures are met, files that do not fit are refused."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tood.errors import ConfigError, DataError
from tood.evaluation import (
    Detections,
    coco_figures,
    evaluate_files,
    merge,
    precision_recall,
    read_results,
    read_truth,
    results_from_predictions,
    write_results,
)

GOLDEN = Path(os.environ.get("TOOD_GOLDEN", Path(__file__).parents[1] / "golden"))
BACKENDS = ["hotcoco", "pycocotools"]
NAMES = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
NAMES += ["AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"]


def random_set(seed: int) -> tuple[dict, Detections]:
    """Few images and classes, with crowds, empty images and classes, tied scores, empty and foreign boxes."""
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(10**9, size=rng.integers(1, 8), replace=False).tolist()
    category_ids = rng.choice(90, size=rng.integers(1, 5), replace=False).tolist()
    annotations, found = [], []
    for image_id in image_ids:
        for _ in range(rng.integers(0, 10) if rng.random() > 0.2 else 0):
            box = rng.uniform(0, 300, 2).round(1).tolist() + np.exp(rng.uniform(1, 5.5, 2)).round(1).tolist()
            category = int(rng.choice(category_ids))
            area = rng.choice([box[2] * box[3], 0.6 * box[2] * box[3], 32.0**2, 96.0**2, 0.0])  # also where COCO's sizes meet
            more = {"area": area, "iscrowd": int(rng.random() < 0.1)}
            kept = {key: value for key, value in more.items() if rng.random() > 0.05}  # neither has to be there
            annotations.append({"image_id": image_id, "category_id": category, "bbox": box} | kept)
            for spread in rng.choice([0, 0.03, 0.15], size=rng.integers(0, 4)):
                near = np.array(box) + spread * rng.normal(size=4) * np.array(box[2:] * 2)
                found.append((image_id, [*near[:2], *np.abs(near[2:])], round(rng.random(), 1), category))
        many = rng.integers(101, 140) if rng.random() < 0.15 else rng.integers(0, 6)
        for _ in range(many):  # of one class at times, so that maxDets cuts
            box = [*rng.uniform(-20, 600, 2), *rng.choice([0, 32, 96, 200, 5000], 2) * rng.uniform(0.9, 1.1) ** rng.integers(2)]
            found.append((image_id, box, round(rng.random(), 2), category_ids[0]))
    data = {
        "images": [{"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in image_ids],
        "categories": [{"id": c, "name": f"class {c}"} for c in category_ids],
        "annotations": [{"id": number, **a} for number, a in enumerate(annotations)],  # from 0: see read_truth
    }
    return data, detections(found)


def detections(found: list[tuple]) -> Detections:
    columns = list(zip(*found, strict=True)) or [[], [], [], []]
    image_ids, boxes, scores, category_ids = columns
    return Detections(
        np.array(image_ids, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
        np.array(category_ids, np.int64),
    )


def written(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def one_object(**changes: object) -> dict:
    annotation = {"id": 7, "image_id": 3, "category_id": 5, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
    return {
        "images": [{"id": 3, "width": 100, "height": 100, "file_name": "a.jpg"}],
        "categories": [{"id": 5, "name": "cup"}],
        "annotations": [annotation | changes],
    }


# -- the two evaluators ----------------------------------------------------------------------------------------------


def both_agree(seed: int, path: Path) -> None:
    data, found = random_set(seed)
    truth = read_truth(written(path, data))
    max_dets = (100, 300, 1000) if seed % 5 == 0 else (1, 10, 100)
    ours, reference = (precision_recall(truth, found, backend=b, max_dets=max_dets) for b in BACKENDS)
    for array, expected in zip(ours, reference, strict=True):
        assert array.shape == expected.shape, f"seed {seed}"
        assert np.ascontiguousarray(array).tobytes() == expected.tobytes(), f"seed {seed}"
    if seed % 10 == 0:
        fast, slow = (coco_figures(path, found, backend=b, max_dets=max_dets) for b in BACKENDS)
        assert (fast.summary, fast.per_class) == (slow.summary, slow.per_class), f"seed {seed}"
        assert coco_figures(truth, found, max_dets=max_dets).summary == fast.summary, f"seed {seed}"


def test_both_evaluators_agree_to_the_bit(tmp_path):
    for seed in range(100):
        both_agree(seed, tmp_path / "truth.json")


@pytest.mark.system
def test_both_evaluators_agree_to_the_bit_a_thousand_times(tmp_path):
    for seed in range(100, 1100):
        both_agree(seed, tmp_path / "truth.json")


def test_the_random_sets_hold_the_hard_cases():
    sets = [random_set(seed) for seed in range(50)]
    assert any(a.get("iscrowd") for data, _ in sets for a in data["annotations"])
    assert any(len(data["images"]) > len({a["image_id"] for a in data["annotations"]}) for data, _ in sets)
    assert any(len(data["categories"]) > len({a["category_id"] for a in data["annotations"]}) for data, _ in sets)
    assert any(np.unique(found.image_ids, return_counts=True)[1].max(initial=0) > 100 for _, found in sets)
    assert any(not len(found.scores) for _, found in sets) or any(not data["annotations"] for data, _ in sets)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_printed(backend, tmp_path, capfd):
    data, found = random_set(1)
    coco_figures(written(tmp_path / "truth.json", data), found, backend=backend)
    assert capfd.readouterr() == ("", "")


def test_auto_falls_back_to_pycocotools(tmp_path, monkeypatch):
    data, found = random_set(2)
    path = written(tmp_path / "truth.json", data)
    fast = coco_figures(path, found)
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # as if it were not installed
    slow = coco_figures(path, found)
    assert fast.summary == slow.summary
    assert fast.per_class == slow.per_class
    with pytest.raises(ConfigError, match="hotcoco: pip install"):
        coco_figures(path, found, backend="hotcoco")
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ConfigError, match="hotcoco or pycocotools"):
        coco_figures(path, found)
    with pytest.raises(ConfigError, match="'coco' is not one of"):
        coco_figures(path, found, backend="coco")


# -- recorded figures ------------------------------------------------------------------------------------------------


def golden_cases() -> list[tuple[Path, str]]:
    cases = []
    for path in sorted(GOLDEN.rglob("*.json")):
        recorded = json.loads(path.read_text())
        if isinstance(recorded, dict) and recorded.get("kind") == "cocoeval":
            cases += [(path, name) for name, case in recorded.items() if isinstance(case, dict)]
    return cases


@pytest.mark.golden
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("path", "name"), golden_cases(), ids=lambda v: v if isinstance(v, str) else v.parent.name)
def test_recorded_figures(path, name, backend):
    recorded = json.loads(path.read_text())[name]
    annotations, found = path.with_name(f"{name}_gt.json"), read_results(path.with_name(f"{name}_dt.json"))
    assert len(found.scores) == recorded["num_det"]
    for part in ("coco", "mmdet_proposal_nums"):
        figures = coco_figures(annotations, found, backend=backend, max_dets=tuple(recorded[part]["maxDets"]))
        np.testing.assert_allclose(list(figures.summary.values()), recorded[part]["stats"], rtol=0, atol=1e-12)
    figures = coco_figures(annotations, found, backend=backend)
    truth = read_truth(annotations)
    for key, column in (("per_category_AP", "AP"), ("per_category_AP50", "AP50")):
        assert {str(c) for c in truth.category_ids} == recorded[key].keys()
        for category, class_name in zip(truth.category_ids, truth.names, strict=True):
            assert figures.per_class[class_name][column] == pytest.approx(recorded[key][str(category)], abs=1e-12)
    _, recall = precision_recall(truth, found, backend=backend)
    np.testing.assert_allclose(recall[:, :, 0, -1], recorded["recall_at_100_per_iou_per_cat"], rtol=0, atol=1e-12)


# -- figures by hand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_perfect_detection_and_undefined_sizes(backend, tmp_path):
    path = written(tmp_path / "truth.json", one_object())
    figures = coco_figures(path, detections([(3, [10, 10, 40, 40], 0.9, 5)]), backend=backend)
    assert list(figures.summary) == NAMES
    undefined = {"AP_small", "AP_large", "AR_small", "AR_large"}  # the one object is of medium size
    assert figures.summary == {name: pytest.approx(-1 if name in undefined else 1) for name in NAMES}
    assert figures.per_class == {"cup": {"AP": pytest.approx(1), "AP50": pytest.approx(1)}}
    assert figures.precision.shape == (10, 101, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detection_gives_zero(backend, tmp_path):
    figures = coco_figures(written(tmp_path / "truth.json", one_object()), detections([]), backend=backend)
    assert (figures.summary["AP"], figures.summary["AR_100"], figures.per_class["cup"]["AP"]) == (0, 0, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_object_gives_undefined(backend, tmp_path):
    data = one_object() | {"annotations": []}
    found = detections([(3, [10, 10, 40, 40], 0.9, 5)])
    figures = coco_figures(written(tmp_path / "truth.json", data), found, backend=backend)
    assert set(figures.summary.values()) == {-1.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_object_with_id_zero_can_be_found(backend, tmp_path):
    path = written(tmp_path / "truth.json", one_object(id=0))
    figures = coco_figures(path, detections([(3, [10, 10, 40, 40], 0.9, 5)]), backend=backend)
    assert figures.summary["AP"] == pytest.approx(1)


def test_area_and_crowd_may_be_left_out(tmp_path):
    data = one_object()
    del data["annotations"][0]["area"], data["annotations"][0]["iscrowd"]
    assert (
        read_truth(written(tmp_path / "a.json", data)).annotations
        == read_truth(written(tmp_path / "b.json", one_object())).annotations
    )


def test_annotations_that_reading_dropped_neither_count_nor_are_checked(tmp_path):
    data = one_object()
    more = [
        data["annotations"][0] | {"id": 20 + i, "bbox": box} for i, box in enumerate([[], [1, 1, float("nan"), 1], [5, 5, 0, 10]])
    ]
    clean, full = written(tmp_path / "clean.json", data), written(tmp_path / "full.json", data | {"annotations": []})
    written(full, data | {"annotations": [*more, *data["annotations"]]})
    assert read_truth(full, {20, 21, 22}).annotations == read_truth(clean).annotations
    with pytest.raises(DataError) as caught:
        read_truth(full)
    assert len(caught.value.problems) == 2  # by themselves a box without area is an object, as in COCO's own evaluation


def test_a_missed_crowd_costs_nothing(tmp_path):
    data = one_object()
    data["annotations"].append(data["annotations"][0] | {"id": 8, "bbox": [60, 60, 30, 30], "iscrowd": 1})
    found = detections([(3, [10, 10, 40, 40], 0.9, 5)])
    assert coco_figures(written(tmp_path / "truth.json", data), found).summary["AP"] == pytest.approx(1)


# -- detections ------------------------------------------------------------------------------------------------------


def test_predictions_become_detections():
    predictions = [
        {
            "boxes": torch.tensor([[1.0, 2, 4, 8], [0, 0, 0.1, 0.3]]),
            "scores": torch.tensor([0.9, 0.1]),
            "labels": torch.tensor([1, 0]),
        },
        {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": torch.tensor([[5.0, 5, 6, 7]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([2])},
    ]
    found = results_from_predictions(torch.tensor([30, 10, 20]), predictions, (1, 18, 90))
    assert found.image_ids.tolist() == [30, 30, 20]
    assert found.category_ids.tolist() == [18, 1, 90]
    assert found.boxes[0].tolist() == [1, 2, 3, 6]
    assert found.boxes[1].tolist() == [0, 0, float(np.float32(0.1)), float(np.float32(0.3))]
    assert found.scores.tolist() == [float(np.float32(s)) for s in (0.9, 0.1, 0.5)]
    assert [column.dtype for column in found] == [np.int64, np.float64, np.float64, np.int64]
    assert [len(column) for column in results_from_predictions([], [], (1,))] == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="2 image ids for 3 predictions"):
        results_from_predictions([1, 2], predictions, (1, 18, 90))


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_merging_does_not_depend_on_the_workers(workers):
    rng = np.random.default_rng(0)
    image_ids = rng.integers(0, 40, 400)
    rows = np.column_stack([np.arange(400), rng.uniform(0, 90, (400, 3))])  # x tells the order within an image
    whole = Detections(image_ids, rows, rng.random(400).round(1), rng.integers(1, 9, 400))
    shares = [image_ids % workers == rank for rank in rng.permutation(workers)]
    merged = merge([Detections(*(column[share] for column in whole)) for share in shares])
    expected = sorted(range(400), key=lambda i: (image_ids[i], -whole.scores[i], i))
    for column, original in zip(merged, whole, strict=True):
        np.testing.assert_array_equal(column, original[expected])


def test_merging_refuses_an_image_of_two_workers():
    part = detections([(3, [0, 0, 1, 1], 0.5, 1), (4, [0, 0, 1, 1], 0.5, 1)])
    with pytest.raises(DataError, match="image 4 come from two workers"):
        merge([part, detections([(4, [0, 0, 1, 1], 0.5, 1)])])
    assert len(merge([]).scores) == 0


def test_results_come_back_exactly(tmp_path):
    _, found = random_set(5)
    path = tmp_path / "deep" / "results.json"
    for expected in (found, detections([])):
        write_results(path, expected)
        for column, original in zip(read_results(path), expected, strict=True):
            assert column.dtype == original.dtype
            np.testing.assert_array_equal(column, original)
    assert os.listdir(path.parent) == ["results.json"]


def test_a_failed_write_leaves_the_old_results(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, detections([(3, [0, 0, 1, 1], 0.5, 1)]))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="cannot be written: No space left"):
        write_results(path, detections([]))
    assert len(read_results(path).scores) == 1
    assert os.listdir(tmp_path) == ["results.json"]


# -- files that do not fit -------------------------------------------------------------------------------------------

GOOD = {"image_id": 3, "category_id": 5, "bbox": [10, 10, 40, 40], "score": 0.9}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": []}', "expected a list of detections"),
        ("[{]", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([GOOD, 7], "detection 1: image_id None is not an integer"),
        ([GOOD | {"image_id": "3"}], "detection 0: image_id '3' is not an integer"),
        ([GOOD | {"image_id": True}], "image_id True"),
        ([GOOD | {"image_id": 2**70}], "image_id"),
        ([GOOD | {"category_id": 5.0}], "category_id 5.0 is not an integer"),
        ([GOOD | {"bbox": [1, 2, 3]}], "bbox"),
        ([GOOD | {"bbox": [1, 2, 3, "4"]}], "four finite numbers"),
        ([GOOD | {"bbox": [1, 2, 3, float("nan")]}], "four finite numbers"),
        ([GOOD | {"bbox": [1, 2, 3, 10**400]}], "four finite numbers"),
        ([GOOD | {"score": float("nan")}], "score nan is not a finite number"),
        ([GOOD | {"score": float("-inf")}], "score -inf"),
        ([GOOD | {"score": None}], "score None"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], "score None"),
    ],
)
def test_wrong_results_are_refused(content, message, tmp_path):
    path = written(tmp_path / "results.json", content)
    with pytest.raises(DataError, match=message) as caught:
        read_results(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_every_wrong_entry_is_listed(tmp_path):
    path = written(tmp_path / "results.json", [GOOD | {"score": None}, GOOD, GOOD | {"bbox": 1, "image_id": None}])
    with pytest.raises(DataError, match="and 2 more") as caught:
        read_results(path)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_unknown_ids_are_refused(key, tmp_path):
    annotations = written(tmp_path / "truth.json", one_object())
    results = written(tmp_path / "results.json", [GOOD, GOOD | {key: 999}])
    with pytest.raises(DataError, match=f"{key[:5]}.* ids that .*truth.json does not have: 999"):
        evaluate_files(annotations, results)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    annotations = written(tmp_path / "truth.json", one_object())
    with pytest.raises(DataError, match="not finite"):
        coco_figures(annotations, detections([(3, [10, 10, 40, 40], float("nan"), 5)]))


def without(data: dict, key: str) -> dict:
    return {k: v for k, v in data.items() if k != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([GOOD], "not a COCO annotations file"),
        (without(one_object(), "annotations"), "not a COCO annotations file"),
        (one_object() | {"images": {}}, "not a COCO annotations file"),
        (one_object() | {"images": ["a.jpg"]}, r"images\[0\]: expected an object with an integer id"),
        (one_object() | {"images": one_object()["images"] * 2}, r"images\[1\]: id 3 occurs twice"),
        (one_object() | {"categories": [{"id": 5}]}, "category 5: its name is not text"),
        (
            one_object() | {"categories": [{"id": 5, "name": "cup"}, {"id": 6, "name": "cup"}]},
            "names are not unique",
        ),
        (one_object(id="7"), r"annotations\[0\]: expected an object with an integer id"),
        (one_object(image_id=4), "image 4, annotation 7: image_id 4 is not in the file"),
        (one_object(image_id=[3]), "is not in the file"),
        (one_object(category_id=4), "image 3, annotation 7: category_id 4 is not in the file"),
        (one_object(bbox=[1, 2, 3, float("inf")]), "annotation 7: bbox"),
        (one_object(bbox=None), "annotation 7: bbox None"),
        (one_object(area="big"), "annotation 7: area 'big' is not a finite number"),
        (one_object(iscrowd=2), "annotation 7: iscrowd 2 is not 0 or 1"),
    ],
)
def test_wrong_annotations_are_refused(content, message, tmp_path):
    path = written(tmp_path / "truth.json", content)
    with pytest.raises(DataError, match=message) as caught:
        coco_figures(path, detections([]))
    assert str(path) in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none.json: cannot be read: No such file"):
        evaluate_files(tmp_path / "none.json", written(tmp_path / "results.json", [GOOD]))
    with pytest.raises(DataError, match=r"none.json: cannot be read"):
        read_results(tmp_path / "none.json")
