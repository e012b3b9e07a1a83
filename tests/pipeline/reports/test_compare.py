"""Comparisons: seeds of one configuration do not differ, a better one does, and the table says what was compared."""

import json
import math

import numpy as np
import pytest

from pipeline.reports.compare import as_values, compare, notable_classes, table, verdict
from pipeline.reports.subjects import Member, Subject
from pipeline.statistics import Difference
from tood.evaluation import Detections, coco_figures, read_truth

CLASSES = ("cup", "dog", "kite")


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """60 images with three objects each, and one image with none."""
    generator = np.random.default_rng(1)
    annotations = []
    for image in range(1, 61):
        for _ in range(3):
            box = [*generator.uniform(0, 400, 2), *generator.uniform(30, 150, 2)]
            category = int(generator.integers(1, 4))
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": box})
    data = {
        "images": [{"id": i, "width": 640, "height": 640, "file_name": f"{i}.jpg"} for i in range(1, 62)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
        "annotations": annotations,
    }
    path = tmp_path_factory.mktemp("truth") / "instances_val.json"
    path.write_text(json.dumps(data))
    return read_truth(path)


def detected(truth, looseness: float, seed: int) -> Detections:
    """Every object with a box that is `looseness` of its size beside it, and a false box an image."""
    generator = np.random.default_rng(seed)
    rows = []
    for a in truth.annotations:
        box = np.array(a["bbox"])
        box[:2] += looseness * generator.normal(size=2) * box[2:]
        rows.append((truth.image_ids[a["image_id"] - 1], box, generator.uniform(0.3, 1), a["category_id"]))
    for image in truth.image_ids:
        rows.append((image, [*generator.uniform(0, 400, 2), 50.0, 50.0], generator.uniform(0, 0.6), generator.integers(1, 4)))
    images, boxes, scores, categories = zip(*rows, strict=True)
    return Detections(np.array(images), np.array(boxes, dtype=float), np.array(scores), np.array(categories, dtype=np.int64))


def subject(truth, name: str, looseness: float, seeds, configuration: str | None = None) -> Subject:
    return Subject(name, tuple(Member(f"{name}{s}", detected(truth, looseness, s), configuration) for s in seeds))


def test_two_seeds_of_one_configuration_do_not_differ(truth):
    for seed in range(1, 6):
        found = compare([subject(truth, "a", 0.1, [0], "c"), subject(truth, "b", 0.1, [seed], "c")], truth, resamples=200)
        assert found.others[0].verdict.startswith("no difference: A and B are seeds of one configuration")
        assert found.others[0].same
        assert found.others[0].differences["AP"].low < 0 < found.others[0].differences["AP"].high


def test_groups_of_seeds_that_are_alike_do_not_differ(truth):
    found = compare([subject(truth, "a", 0.1, [0, 1, 2], "c"), subject(truth, "b", 0.1, [3, 4, 5], "d")], truth, resamples=200)
    assert found.others[0].verdict.startswith("no difference: ")
    assert found.others[0].differences["AP"].seeds_known
    assert found.others[0].exchange_p is None


def test_a_better_configuration_is_said_to_be_better_whichever_comes_first(truth):
    worse, better = subject(truth, "worse", 0.14, [0, 1], "c"), subject(truth, "better", 0.08, [2, 3], "d")
    for pair, winner in (([worse, better], "B"), ([better, worse], "A")):
        other = compare(pair, truth, resamples=200).others[0]
        assert other.verdict.startswith(f"{winner} is better: +")
        low, high = other.verdict.partition("[")[2].rstrip("]").split(", ")
        assert 0 < float(low) < float(high)
    one_each = compare(
        [worse._replace(members=worse.members[:1]), better._replace(members=better.members[:1])], truth, resamples=200
    )
    assert one_each.others[0].verdict.startswith("B is better: +")
    assert "one seed each" in one_each.others[0].verdict
    assert one_each.others[0].exchange_p == pytest.approx(1 / 201)


def test_figures_are_those_of_the_evaluation(truth):
    a, b = subject(truth, "a", 0.1, [0]), subject(truth, "b", 0.12, [1])
    found = compare([a, b], truth, resamples=20)
    for one, measured in zip((a, b), found.measured, strict=True):
        expected = coco_figures(truth.path, one.members[0].detections).summary
        for name, value in measured.items():
            assert (-1 if np.isnan(value[0]) else value[0]) == pytest.approx(expected[name], abs=1e-12)
    d = found.others[0].differences["AP"]
    assert d.value == pytest.approx(found.measured[1]["AP"][0] - found.measured[0]["AP"][0])
    per_class = [coco_figures(truth.path, one.members[0].detections).per_class["dog"]["AP"] for one in (a, b)]
    assert found.others[0].per_class[1].value == pytest.approx(per_class[1] - per_class[0])


def test_several_are_compared_with_the_first_and_their_intervals_are_wider(truth):
    subjects = [subject(truth, name, 0.1, [seed]) for seed, name in enumerate("abcd")]
    two, four = compare(subjects[:2], truth, resamples=100), compare(subjects, truth, resamples=100)
    assert len(four.others) == 3
    one, same_one = (c.others[0].differences["AP"] for c in (two, four))
    assert same_one.value == one.value
    assert same_one.high - same_one.low > 1.15 * (one.high - one.low)
    assert "3 comparisons with A: each interval is at 98.33 %" in table(four)


def test_the_table_fits_and_the_values_are_json(truth):
    found = compare([subject(truth, "x" * 120, 0.1, [0, 1], "c"), subject(truth, "b", 0.1, [2], "d")], truth, resamples=50)
    text = table(found)
    assert max(map(len, text.splitlines()[:-1])) <= 100
    assert "AR_100" in text
    assert text.rstrip().endswith(found.others[0].verdict)
    assert all(name in text for name in CLASSES)
    values = json.loads(json.dumps(as_values(found), allow_nan=False))
    assert values["against_first"][0]["differences"]["AP"]["low"] < values["against_first"][0]["differences"]["AP"]["high"]
    assert len(values["subjects"][0]["figures"]["AP"]) == 2
    assert set(values["against_first"][0]["per_class"]) == set(CLASSES)


def test_words_of_a_verdict():
    def said(value: float, low: float, high: float, seeds: bool = True) -> str:
        return verdict("A", "B", Difference(value, low, high, 0.1, 0.5, 0.95, (1, 1), seeds), False)

    assert said(0.002, -0.006, 0.010).startswith("no difference: +0.2 AP [-0.6, +1.0]")
    assert said(0.02, 0.006, 0.034) == "B is better: +2.0 AP [+0.6, +3.4]"
    assert said(-0.02, -0.034, -0.006) == "A is better: +2.0 AP [+0.6, +3.4]"
    assert said(math.nan, math.nan, math.nan).startswith("not comparable")


def test_detectors_that_found_nothing_tie(truth):
    nothing = Detections(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    found = compare([Subject(name, (Member(name, nothing, None),)) for name in "ab"], truth, resamples=20)
    assert found.others[0].verdict.startswith("no difference: +0.0 AP [+0.0, +0.0]")
    assert table(found)
    assert notable_classes(found.others[0], 0.95) == [0, 1, 2]
