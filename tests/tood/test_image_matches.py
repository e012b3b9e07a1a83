"""Figures by weights are COCO's figures: of the data set itself, and of one in which images occur often or not at all."""

import json

import numpy as np
import pytest

from tests.tood.test_evaluation import BACKENDS, NAMES, detections, one_object, random_set, written
from tood.evaluation import Detections, coco_figures, read_truth
from tood.image_matches import image_matches, side_by_side, weighted_figures


def as_coco(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: -1.0 if np.isnan(value[0]) else value[0] for name, value in values.items()}


def replicated(data: dict, found: Detections, counts: np.ndarray) -> tuple[dict, Detections]:
    """The data set in which the image at place i of the sorted ids occurs counts[i] times."""
    images, annotations, parts = [], [], []
    for image, count in zip(sorted(data["images"], key=lambda image: image["id"]), counts.tolist(), strict=True):
        for _ in range(count):
            number = len(images) + 1
            images.append(image | {"id": number})
            mine = [a for a in data["annotations"] if a["image_id"] == image["id"]]
            annotations += [a | {"id": len(annotations) + i, "image_id": number} for i, a in enumerate(mine, 1)]
            rows = found.image_ids == image["id"]
            parts.append(Detections(np.full(rows.sum(), number), *(column[rows] for column in found[1:])))
    whole = [np.concatenate([column[:0], *columns]) for column, *columns in zip(found, *parts, strict=True)]
    return data | {"images": images, "annotations": annotations}, Detections(*whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(50))
def test_with_every_weight_one_the_twelve_figures_are_cocos(seed, backend, tmp_path):
    data, found = random_set(seed)
    path = written(tmp_path / "truth.json", data)
    expected = coco_figures(path, found)
    matches = image_matches(read_truth(path), found, backend=backend)
    ours = weighted_figures(matches, np.ones((1, matches.images)))
    assert list(ours.summary) == NAMES
    assert as_coco(ours.summary) == pytest.approx(expected.summary, abs=1e-12)
    per_class = {name: -1.0 if np.isnan(v) else v for name, v in zip(matches.names, ours.per_class[:, 0], strict=True)}
    assert per_class == pytest.approx({name: figures["AP"] for name, figures in expected.per_class.items()}, abs=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_weights_are_how_often_an_image_occurs(seed, tmp_path):
    data, found = random_set(seed)
    generator = np.random.default_rng(seed)
    # copies of an image tie with each other; other ties would be broken by the place among the copies
    found = found._replace(scores=generator.permutation(len(found.scores)) / (len(found.scores) + 1))
    counts = generator.multinomial(len(data["images"]), np.full(len(data["images"]), 1 / len(data["images"])))
    matches = image_matches(read_truth(written(tmp_path / "truth.json", data)), found)
    ours = weighted_figures(matches, np.stack([np.ones_like(counts), counts]))
    expected = coco_figures(written(tmp_path / "many.json", (many := replicated(data, found, counts))[0]), many[1])
    assert as_coco({name: value[1:] for name, value in ours.summary.items()}) == pytest.approx(expected.summary, abs=1e-12)


def test_without_detections_found_objects_are_nought_and_without_objects_nothing_is_defined(tmp_path):
    path = written(tmp_path / "truth.json", one_object())
    figures = weighted_figures(image_matches(read_truth(path), detections([])), np.array([[1], [0]]))
    assert figures.summary["AP"][0] == figures.summary["AR_100"][0] == 0
    assert np.isnan(figures.summary["AP"][1])  # the only image left out
    assert np.isnan(figures.summary["AP_large"][0])
    nothing = one_object() | {"annotations": []}
    (tmp_path / "nothing.json").write_text(json.dumps(nothing))
    empty = weighted_figures(
        image_matches(read_truth(tmp_path / "nothing.json"), detections([(3, [1, 1, 5, 5], 0.5, 5)])), np.ones((1, 1))
    )
    assert all(np.isnan(value).all() for value in empty.summary.values())


def test_large_arrays_are_worked_on_in_parts(tmp_path, monkeypatch):
    data, found = random_set(4)
    matches = image_matches(read_truth(written(tmp_path / "truth.json", data)), found)
    weights = np.random.default_rng(0).integers(0, 3, (20, matches.images))
    whole = weighted_figures(matches, weights)
    monkeypatch.setattr("tood.image_matches.CELLS", 7)
    parts = weighted_figures(matches, weights)
    for name, values in whole.summary.items():
        np.testing.assert_array_equal(parts.summary[name], values)


@pytest.mark.parametrize("seed", range(10))
def test_two_detectors_can_take_turns_image_by_image(seed, tmp_path):
    data, found = random_set(seed)
    generator = np.random.default_rng(seed)
    found = found._replace(scores=generator.permutation(len(found.scores)) / (len(found.scores) + 1))
    other = found._replace(boxes=found.boxes + generator.normal(size=found.boxes.shape), scores=found.scores[::-1] + 1e-9)
    ids = np.array(sorted(image["id"] for image in data["images"]))
    second = generator.random(len(ids)) < 0.5
    path = written(tmp_path / "truth.json", data)
    truth = read_truth(path)
    both = side_by_side(image_matches(truth, found), image_matches(truth, other))
    ours = weighted_figures(both, np.concatenate([~second, second])[None])
    rows = [np.isin(d.image_ids, ids[taken]) for d, taken in ((found, ~second), (other, second))]
    turns = Detections(*(np.concatenate([x[rows[0]], y[rows[1]]]) for x, y in zip(found, other, strict=True)))
    assert as_coco(ours.summary) == pytest.approx(coco_figures(path, turns).summary, abs=1e-12)
