"""An analysis from images to JSON: all figures again, one point and one object at a time, from what the detector says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import write_dataset
from tests.tood import slow_analysis as slow
from tests.tood.tiny_recipe import recipe as tiny_recipe
from tood.analysis import ObjectFigures, analyse, by_size, figures_of, run
from tood.config import build
from tood.data.batches import normalise, stack_images
from tood.data.coco import read_coco, read_split
from tood.data.targets import pad_targets
from tood.data.transforms import load_sample
from tood.detectors import DETECTORS, ModelConfig, build_detector
from tood.error_kinds import KINDS
from tood.evaluation import coco_figures
from tood.inference import detect_all
from tood.priors import inside_image
from tood.task_alignment import confidence

THRESHOLD = 0.011  # fresh weights say 0.01 of everything


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(detector, val data, recipe): with a crowd, an image without objects, and an object that no point lies in."""
    folder = write_dataset(tmp_path_factory.mktemp("tiny") / "data")
    content = json.loads((folder / "val.json").read_text())
    first = content["annotations"][0]
    content["annotations"] += [
        {**first, "id": 901, "iscrowd": 1, "bbox": [2, 2, 40, 40]},
        {**first, "id": 902, "bbox": [25.5, 25.5, 3, 3], "area": 9},
    ]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 5]
    (folder / "val.json").write_text(json.dumps(content))
    recipe = tiny_recipe(folder)
    torch.manual_seed(3)
    detector = build_detector(recipe.model, 3, recipe.predict)
    for name, parameter in detector.named_parameters():
        if "classes" in name or "boxes" in name:
            torch.nn.init.normal_(parameter, std=0.2)  # scores and boxes that differ from point to point
    return detector.eval(), read_split(recipe.data, "val"), recipe


def dense(detector, recipe, record):
    """Predictions at every point of one image, its sample, and which points count."""
    sample = load_sample(record, recipe.data, training=False)
    images, sizes = stack_images([sample.image])
    with torch.no_grad():
        predictions = detector.dense(normalise(images, sizes, detector.backbone.pixels))
    return predictions, sample, inside_image(predictions.priors, sizes)


def test_all_figures_equal_a_plain_recomputation(tiny):
    detector, data, recipe = tiny
    calls = []
    result = analyse(detector, data, recipe, threshold=THRESHOLD, on_batch=lambda done, total: calls.append((done, total)))
    figures = figures_of(result)
    assert calls[-1] == (8, 8)

    # the detections: those that `tood evaluate` judges
    found = detect_all(detector, data, recipe, torch.device("cpu"))
    content = json.loads(data.annotations.read_text())
    objects, judged = slow.judge(content, found)
    base, costs = slow.costs(objects, judged)
    assert figures["AP50"] == pytest.approx(base, abs=1e-12)
    assert figures["AP50"] == pytest.approx(coco_figures(data.annotations, found).summary["AP50"], abs=1e-12)
    assert tuple(figures["boxes"].values()) == slow.boxes(judged)
    assert list(figures["errors"]) == list(KINDS)
    for kind, (count, gain) in costs.items():
        assert figures["errors"][kind] == {"count": count, "AP50_gain": pytest.approx(gain, abs=1e-12)}
    confusions = slow.confusions(*slow.judge(content, found, THRESHOLD), [1, 2, 3])
    assert figures["confusion"]["matrix"] == confusions.tolist()
    assert figures["confusion"]["names"] == ["red", "green", "blue", "nothing"]
    assert confusions.sum() > len(objects)

    # the points: one image, one object, one point at a time
    expected = []
    for record in data.images:
        predictions, sample, valid = dense(detector, recipe, record)
        owner = detector.objective.assign(predictions, pad_targets([sample.boxes], [sample.labels]), valid, 10**6).object[0]
        areas = record.areas[~record.crowd].tolist()
        for i, (box, label) in enumerate(zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True)):
            scores = predictions.log_scores[0, valid[0], label].tolist()
            boxes, points = predictions.boxes[0, valid[0]].tolist(), predictions.priors.centres[valid[0]].tolist()
            learn = sum(int(o) == i for o in owner)
            expected.append((areas[i], *slow.agreement(scores, boxes, points, box), learn))
    assert len(expected) == len(objects)
    assert 0 in [row[3] for row in expected]
    measured = list(zip(*(column.tolist() for column in result.objects), strict=True))
    for row, plain in zip(measured, expected, strict=True):  # images of one size come in the order of their ids
        assert row == pytest.approx(plain, abs=1e-5, nan_ok=True)
    for size, (low, high) in {"all": (0, 1e9), "small": (0, 1024), "medium": (1024, 9216), "large": (9216, 1e9)}.items():
        rows = [row for row in expected if low <= row[0] < high]
        of_size = figures["objects"][size]
        assert of_size["objects"] == len(rows)
        assert of_size["without_positive"] == sum(row[3] == 0 for row in rows)
        for name, column in (("pcc_top50", 1), ("iou_top10", 2), ("positives", 3)):
            known = [row[column] for row in rows if row[column] == row[column]]
            assert of_size[name] == (pytest.approx(sum(known) / len(known), abs=1e-5) if known else None)
        share = of_size["without_positive"] / len(rows) if rows else None
        assert of_size["share_without_positive"] == (share if share is None else pytest.approx(share))
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize("row", ["atss", "paa", "retinanet"])
def test_confidence_is_what_detections_are_ranked_by(tiny, row):
    """A quality branch enters it, as a product (ATSS) or a mean (PAA); and several priors may share a place (RetinaNet)."""
    _, data, recipe = tiny
    torch.manual_seed(5)
    backbone, neck = {"depth": 18}, DETECTORS[row].get("neck", {})
    slim = {"layers": 1, "channels": 16, "groups": 0 if row == "retinanet" else 4}
    model = build(ModelConfig, {"detector": row, **slim, "neck": {**neck, "channels": 16}, "backbone": backbone})
    detector = build_detector(model, 3, replace(recipe.predict, score_threshold=0.0)).eval()
    torch.nn.init.normal_(detector.head.predictor.classes.weight, std=0.2)
    _, found = run(detector, data, recipe, lambda done, total: None)
    same = detect_all(detector, data, recipe, torch.device("cpu"))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, same, strict=True))
    for record in data.images[:2]:
        predictions, *_ = dense(detector, recipe, record)
        surest = found.scores[found.image_ids == record.image_id].max()
        assert confidence(detector, predictions).max().exp().item() == pytest.approx(surest, rel=1e-5)


def test_what_reading_dropped_is_nothing_to_be_found(tiny, tmp_path):
    detector, data, recipe = tiny
    content = json.loads(data.annotations.read_text())
    boxes = [[], [5, 5, 0, 10], [200, 200, 10, 10]]
    bad = [content["annotations"][0] | {"id": 2000 + i, "bbox": box} for i, box in enumerate(boxes)]
    file = tmp_path / "val.json"
    file.write_text(json.dumps(content | {"annotations": bad + content["annotations"]}))
    other = read_coco(file, data.images[0].path.parent, invalid_boxes="drop")
    assert figures_of(analyse(detector, other, recipe)) == figures_of(analyse(detector, data, recipe))


def test_batches_do_not_change_a_figure_and_the_detector_is_left_as_it_was(tiny):
    detector, data, recipe = tiny
    detector.train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    one = figures_of(analyse(detector, data, replace(recipe, train=replace(recipe.train, batch_size=1))))
    many = figures_of(analyse(detector, data, replace(recipe, train=replace(recipe.train, batch_size=8))))
    assert detector.training
    detector.eval()
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert one["confusion"] == many["confusion"]
    assert one["errors"].keys() == many["errors"].keys()
    for size, of_size in one["objects"].items():
        assert of_size == pytest.approx(many["objects"][size], abs=1e-4)


def test_sizes_are_cocos():
    figures = ObjectFigures(
        areas=np.array([1023.9, 1024, 9215, 9216, 1e6]),
        pcc=np.array([np.nan, 0.5, 0.1, 0.3, 0.5]),
        iou=np.array([0.2, 0.4, 0.6, 0.8, 1.0]),
        points=np.array([0, 3, 0, 5, 9]),
    )
    sizes = by_size(figures)
    assert [of_size["objects"] for of_size in sizes.values()] == [5, 1, 2, 2]
    assert sizes["small"] == {
        "objects": 1,
        "pcc_top50": None,
        "iou_top10": 0.2,
        "without_positive": 1,
        "share_without_positive": 1.0,
        "positives": 0.0,
    }
    assert sizes["medium"]["pcc_top50"] == pytest.approx(0.3)
    assert sizes["large"]["positives"] == 7
    assert sizes["all"]["share_without_positive"] == pytest.approx(0.4)


def test_data_without_an_object_can_be_analysed(tiny, tmp_path: Path):
    detector, data, recipe = tiny
    content = json.loads(data.annotations.read_text())
    (tmp_path / "val.json").write_text(json.dumps(content | {"annotations": []}))
    empty = read_coco(tmp_path / "val.json", data.images[0].path.parent)
    figures = figures_of(analyse(detector, empty, recipe))
    assert figures["AP50"] == -1
    assert figures["objects"]["all"]["pcc_top50"] is None
    assert figures["errors"]["background"]["AP50_gain"] == 0
    json.dumps(figures, allow_nan=False)
