"""Matching, kinds of error, their cost and confusions: equal to a plain recomputation, to COCO's AP50 and to hotcoco's TIDE."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tood import slow_analysis as slow
from tests.tood.test_evaluation import detections, random_set, written
from tood.analysis import count_boxes
from tood.error_kinds import KINDS, error_kinds
from tood.evaluation import coco_figures, read_truth
from tood.matching import confusion_matrix, found_of, match, objects_of
from tood.results import Detections

SEEDS = range(25)


def confusing_set(seed: int) -> tuple[dict, Detections]:
    """A random set (see there) in which every third detection has a class of its own choosing."""
    data, found = random_set(seed)
    rng = np.random.default_rng(seed)
    classes = [c["id"] for c in data["categories"]]
    chosen = np.where(rng.random(len(found.scores)) < 0.3, rng.choice(classes, len(found.scores)), found.category_ids)
    return data, found._replace(category_ids=chosen)


def analysed(folder: Path, data: dict, found: Detections, threshold: float = 0.3):
    """(Boxes, ErrorKinds, confusion matrix), the road that `tood.analysis` takes."""
    truth = read_truth(written(folder / "truth.json", data))
    objects, crowds = objects_of(truth)
    counted = found_of(truth, found, crowds)
    matches = match(counted, objects)
    classes = len(truth.names)
    return (
        count_boxes(counted, matches),
        error_kinds(counted, matches, objects, classes),
        confusion_matrix(counted, objects, classes, threshold),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_equals_the_plain_recomputation(seed, tmp_path):
    data, found = confusing_set(seed)
    boxes, errors, confusions = analysed(tmp_path, data, found)
    objects, judged = slow.judge(data, found)
    assert tuple(boxes) == slow.boxes(judged)
    base, costs = slow.costs(objects, judged)
    assert errors.ap50 == pytest.approx(base, abs=1e-12)
    assert {kind: cost.count for kind, cost in errors.costs.items()} == {kind: costs[kind][0] for kind in KINDS}
    for kind, cost in errors.costs.items():
        assert cost.gain == pytest.approx(costs[kind][1], abs=1e-12), kind
    assert boxes.redundant >= errors.costs["duplicate"].count  # some of them are the classification errors of others
    classes = sorted(c["id"] for c in data["categories"])
    np.testing.assert_array_equal(confusions, slow.confusions(*slow.judge(data, found, 0.3), classes))


def test_the_random_sets_hold_every_kind(tmp_path):
    totals = dict.fromkeys(KINDS, 0)
    confused = 0
    for seed in SEEDS:
        _, errors, confusions = analysed(tmp_path, *confusing_set(seed))
        totals = {kind: total + errors.costs[kind].count for kind, total in totals.items()}
        between = confusions[:-1, :-1]
        confused += between.sum() - between.trace()
    assert min(totals.values()) > 5, totals
    assert confused > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_ap50_is_cocos(seed, tmp_path):
    data, found = confusing_set(seed)
    _, errors, _ = analysed(tmp_path, data, found)
    assert errors.ap50 == pytest.approx(coco_figures(tmp_path / "truth.json", found).summary["AP50"], abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_another_implementation_of_tide_agrees(seed, tmp_path):
    """hotcoco lets an object be mended once in all, TIDE's paper once a kind: so its first two gains may be smaller."""
    from hotcoco import COCO, COCOeval

    data, found = confusing_set(seed)
    alone = [a for a in data["annotations"] if not a.get("iscrowd")]  # its counts include what crowds hide
    data["annotations"] = [{"area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0} | a for a in alone]
    _, errors, _ = analysed(tmp_path, data, found)
    truth = COCO({"info": {}, **data, "annotations": [{**a, "id": a["id"] + 1} for a in data["annotations"]]})
    rows = np.column_stack([found.image_ids, found.boxes, found.scores, found.category_ids]).astype(np.float64)
    run = COCOeval(truth, truth.load_res(rows), "bbox")
    run.evaluate()
    theirs = run.tide_errors(pos_thr=0.5, bg_thr=0.1)
    names = dict(zip(KINDS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))
    assert {name: errors.costs[kind].count for kind, name in names.items()} == theirs["counts"]
    for kind, name in names.items():
        if kind in ("classification", "localisation"):
            assert errors.costs[kind].gain >= theirs["delta_ap"][name] - 1e-9
        else:
            assert errors.costs[kind].gain == pytest.approx(theirs["delta_ap"][name], abs=1e-9)


# -- one of each, by hand ----------------------------------------------------------------------------------------------

CUP, PLATE = 5, 9
OBJECT = [100, 100, 100, 100]  # x, y, width, height
CASES = {
    "right": ([110, 100, 100, 100], CUP, None),
    "classification": ([110, 100, 100, 100], PLATE, "classification"),
    "localisation": ([160, 100, 100, 100], CUP, "localisation"),
    "both": ([160, 100, 100, 100], PLATE, "both"),
    "background": ([195, 100, 100, 100], CUP, "background"),
    "elsewhere": ([300, 300, 50, 50], PLATE, "background"),
}


def scene(*found: tuple, more: tuple = ()) -> tuple[dict, Detections]:
    """One cup, and detections (box, class, score)."""
    annotations = [{"id": 1, "image_id": 3, "category_id": CUP, "bbox": OBJECT}, *more]
    data = {
        "images": [{"id": 3, "width": 640, "height": 480, "file_name": "a.jpg"}],
        "categories": [{"id": CUP, "name": "cup"}, {"id": PLATE, "name": "plate"}],
        "annotations": annotations,
    }
    return data, detections([(3, box, score, category) for box, category, score in found])


@pytest.mark.parametrize("case", CASES)
def test_each_kind_by_hand(case, tmp_path):
    box, category, kind = CASES[case]
    _, errors, confusions = analysed(tmp_path, *scene((box, category, 0.9)))
    counts = {name: cost.count for name, cost in errors.costs.items() if cost.count}
    expected = {kind: 1} if kind else {}
    if kind in ("both", "background"):
        expected["missed"] = 1  # no box and no class to be mended belongs to the cup
    assert counts == expected
    assert errors.ap50 == pytest.approx(1.0 if case == "right" else 0.0)
    gain = 1.0 if kind in ("classification", "localisation") else 0.0
    assert errors.costs[kind or "missed"].gain == pytest.approx(gain, abs=1e-9)
    names = {"right": (0, 0), "classification": (0, 1)}
    column = 0 if category == CUP else 1
    assert confusions[names.get(case, (2, column))] == 1
    assert confusions.sum() == (1 if case in names else 2)


def test_a_duplicate_costs_only_below_a_recall_that_is_not_reached_yet(tmp_path):
    other = {"id": 2, "image_id": 3, "category_id": CUP, "bbox": [400, 100, 100, 100]}
    found = [(OBJECT, CUP, 0.9), ([101, 100, 100, 100], CUP, 0.8), ([400, 100, 100, 100], CUP, 0.7)]
    boxes, errors, _ = analysed(tmp_path, *scene(*found, more=(other,)))
    assert tuple(boxes) == (2, 1, 0)
    assert errors.costs["duplicate"].count == 1
    assert errors.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert errors.costs["duplicate"].gain == pytest.approx(1 - errors.ap50)
    surest_last = [(*found[0][:2], 0.6), *found[1:]]
    boxes, errors, _ = analysed(tmp_path, *scene(*surest_last, more=(other,)))
    assert tuple(boxes) == (2, 1, 0)  # now the better box is the duplicate
    assert errors.costs["duplicate"].gain == pytest.approx(0, abs=1e-12)


def test_what_is_in_a_crowd_is_neither_right_nor_wrong(tmp_path):
    crowd = {"id": 2, "image_id": 3, "category_id": CUP, "bbox": [300, 0, 300, 400], "iscrowd": 1}
    inside = ([350, 50, 60, 60], CUP, 0.9)
    boxes, errors, confusions = analysed(tmp_path, *scene(inside, more=(crowd,)))
    assert sum(cost.count for kind, cost in errors.costs.items() if kind != "missed") == 0
    assert sum(boxes) == 0
    assert confusions[2].sum() == 0
    of_another_class = (inside[0], PLATE, 0.9)
    _, errors, _ = analysed(tmp_path, *scene(of_another_class, more=(crowd,)))
    assert errors.costs["background"].count == 1


def test_of_two_that_could_be_mended_the_surest_counts_and_the_other_goes(tmp_path):
    found = [([160, 100, 100, 100], CUP, 0.5), ([100, 160, 100, 100], CUP, 0.6), ([300, 300, 9, 9], CUP, 0.55)]
    _, errors, _ = analysed(tmp_path, *scene(*found))
    assert errors.costs["localisation"].count == 2
    assert errors.costs["localisation"].gain == pytest.approx(1.0)  # the background comes after it
    assert errors.costs["missed"].count == 0


def test_confusions_are_of_detections_from_the_threshold_on(tmp_path):
    data, found = scene((OBJECT, PLATE, 0.9), (OBJECT, CUP, 0.3), ([300, 300, 50, 50], CUP, 0.29))
    *_, low = analysed(tmp_path, data, found, threshold=0.2)
    assert low.tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]  # its own class first, however unsure
    *_, middle = analysed(tmp_path, data, found, threshold=0.3)
    assert middle.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    *_, high = analysed(tmp_path, data, found, threshold=0.31)
    assert high.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_nothing_found_and_nothing_there(tmp_path):
    data, nothing = scene()
    boxes, errors, confusions = analysed(tmp_path, data, nothing)
    assert (tuple(boxes), errors.ap50, errors.costs["missed"].count) == ((0, 0, 0), 0.0, 1)
    assert confusions.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    _, found = scene((OBJECT, CUP, 0.9))
    boxes, errors, confusions = analysed(tmp_path, data | {"annotations": []}, found)
    assert (errors.ap50, errors.costs["background"]) == (-1.0, (1, 0.0))
    assert confusions.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert json.dumps(confusions.tolist())
