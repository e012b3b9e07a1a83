"""Assigners at their limits: scores that underflow, boxes that are no numbers, crowds, and a great many objects."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tood.assign.atss import assign_atss
from tood.assign.task_aligned import assign_task_aligned
from tood.priors import Priors, make_priors

PRIORS = make_priors(((6, 6), (3, 3), (2, 2), (1, 1), (1, 1)), torch.device("cpu"))
N = len(PRIORS.centres)
OBJECT = torch.tensor([[[-2.0, -2, 18, 18]]])
YES, EVERYWHERE = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, N, dtype=torch.bool)


def assign(log_scores, boxes, m=5, **options):
    labels = torch.zeros(1, 1, dtype=torch.int64)
    options = {"alpha": 1.0, "beta": 6.0} | options
    return assign_task_aligned(log_scores, boxes, PRIORS.centres, OBJECT, labels, YES, EVERYWHERE, m=m, **options)


def test_ranking_survives_where_the_metric_underflows():
    """s^2 is 0 in float32 for all but one point; the top m are still chosen by score, and those of metric 0 get nothing."""
    log_scores = torch.full((1, N, 1), -80.0)
    log_scores[0, 7] = -20.0
    found = assign(log_scores, OBJECT.expand(1, N, 4), m=1, alpha=2.0)
    assert (found.object[0] >= 0).nonzero().flatten().tolist() == [7]


def test_a_box_that_is_no_number_harms_no_other_point():
    boxes = PRIORS.anchors.clone()[None]
    boxes[0, 0], boxes[0, 1] = float("nan"), torch.tensor([-torch.inf, -torch.inf, torch.inf, torch.inf])
    found = assign(torch.full((1, N, 1), -1.0), boxes, m=N)
    assert found.object[0, :2].tolist() == [-1, -1]
    assert (found.object >= 0).any()
    for values in (found.iou, found.metric, found.target):
        assert torch.isfinite(values).all()


def test_an_object_may_end_with_no_point_when_all_the_best_lie_outside():
    boxes = torch.zeros(1, N, 4)
    boxes[0, 30:35] = OBJECT[0]  # perfect boxes, predicted from far away
    boxes[0, 8] = OBJECT[0] + 1  # a fair one from within
    log_scores = torch.full((1, N, 1), -0.1)
    assert (assign(log_scores, boxes, m=5).object == -1).all()
    inside = assign(log_scores, boxes, m=5, candidates="inside")
    assert (inside.object[0] >= 0).nonzero().flatten().tolist() == [8]
    assert inside.target[0, 8] == pytest.approx(inside.iou[0, 8].item(), abs=1e-5)


def test_a_point_lost_to_another_object_does_not_count_in_the_losers_target():
    objects = torch.tensor([[[-2.0, -2, 18, 18], [-2, -2, 18, 20]]])
    boxes = torch.full((1, N, 4), -50.0)
    boxes[0, 0], boxes[0, 1] = objects[0, 1], torch.tensor([-2.0, -2, 18, 8])  # the second's to the pixel; half of the first
    labels, both = torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool)
    log_scores = torch.full((1, N, 1), -1.0)
    options = {"alpha": 1.0, "beta": 6.0, "m": 1}
    found = assign_task_aligned(log_scores, boxes, PRIORS.centres, objects, labels, both, EVERYWHERE, **options)
    assert found.object[0, :2].tolist() == [1, -1]  # both objects' one candidate is point 0
    found = assign_task_aligned(log_scores, boxes, PRIORS.centres, objects, labels, both, EVERYWHERE, **options | {"m": 2})
    assert found.object[0, :2].tolist() == [1, 0]
    assert found.target[0, :2].tolist() == pytest.approx([1, 0.5], abs=1e-4)


def test_anchors_of_one_iou_are_all_at_the_threshold_and_all_positive():
    centres = torch.tensor([[8.0, 8], [24, 8]])
    anchors = torch.cat([centres - 16, centres + 16], dim=1)
    priors = Priors(centres, anchors, torch.full((2,), 4.0), (2,))
    found = assign_atss(priors, torch.tensor([[[0.0, 0, 32, 16]]]), YES, torch.ones(1, 2, dtype=torch.bool), topk=2)
    assert found.object.tolist() == [[0, 0]]


def crowd_assignment(share: float):
    crowds = torch.tensor([[[-50.0, -50, 10, 200], [0, 0, 0, 0]]])  # the second row is padding
    return assign_atss(PRIORS, OBJECT, YES, EVERYWHERE, topk=9, ignore_boxes=crowds, ignore_share=share)


def test_points_in_a_crowd_are_ignored_by_the_share_that_lies_in_it():
    x1, x2 = PRIORS.anchors[:, 0], PRIORS.anchors[:, 2]
    y1, y2 = PRIORS.anchors[:, 1].clamp(min=-50), PRIORS.anchors[:, 3].clamp(max=200)
    share = (x2.clamp(max=10) - x1.clamp(min=-50)).clamp(min=0) * (y2 - y1) / (x2 - x1).square()
    for limit in (0.3, 0.6):
        found = crowd_assignment(limit)
        assert torch.equal(found.ignored[0], (share > limit) & (found.object[0] < 0))
        assert found.ignored.any()
        assert not found.ignored.all()


def test_a_share_of_0_turns_ignoring_off():
    assert crowd_assignment(0.0).ignored is None


MANY = """
import json, resource, torch
from tests.tood.assigning import ASSIGNERS
names = ["task_aligned_inside", "atss", "ddod", "center", "fovea", "probabilistic", "soft_label"]  # of each kind the neediest
from tood.data.targets import Targets
from tood.predictions import Predictions
from tood.priors import make_priors
torch.set_num_threads(1)
torch.manual_seed(0)
priors = make_priors(((100, 168), (50, 84), (25, 42), (13, 21), (7, 11)), torch.device("cpu"))
n, g = len(priors.centres), 5000
corner = torch.rand(1, g, 2) * 700
objects = torch.cat([corner, corner + 5 + torch.rand(1, g, 2) * 90], dim=2)
targets = Targets(objects, torch.randint(80, (1, g)), torch.ones(1, g).bool())
predictions = Predictions(torch.rand(1, 80, n).log().transpose(1, 2), priors.anchors[None] + torch.rand(1, n, 4), priors)
everywhere, report = torch.ones(1, n).bool(), {}
for name in names:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    owners = ASSIGNERS[name].assign(predictions, targets, everywhere, 0).object.unique().numel() - 1
    more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    report[name] = {"points": n, "owners": owners, "bytes": more}
print(json.dumps(report))
"""


def test_5000_objects_in_an_image_take_less_than_two_gigabytes_whatever_the_assigner():
    """Peak resident memory of a process of its own, with what the allocator happens to keep of tensors that are gone.

    0.25 GB are alive at once; without chunks a single table of all objects' 64-bit keys would take 0.9 GB.
    """
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", MANY], cwd=root, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert {assigner["points"] for assigner in report.values()} == {22_400}
    assert min(assigner["owners"] for assigner in report.values()) > 500, report
    assert sum(assigner["bytes"] for assigner in report.values()) < 2e9, report
