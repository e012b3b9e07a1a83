"""Laws of batches that every assigner keeps: images stand alone, points outside have no part, chunks are only for memory."""

import torch

from tests.tood.assigning import EVERY_ASSIGNER, N, assign, random_batch
from tood.assign import atss, center, max_iou, soft_label, task_aligned


@EVERY_ASSIGNER
def test_a_batch_is_each_image_alone(name):
    batch = random_batch(4, 5, 2)
    batch["object_valid"][1] = False
    together = assign(name, batch)
    assert (together.object >= 0).any()
    for i in range(4):
        alone = assign(name, {k: v[i : i + 1] for k, v in batch.items()})
        for a, b in zip(alone[:4], together[:4], strict=True):
            assert torch.equal(a[0], b[i])
    assert not (together.object[1] >= 0).any()


@EVERY_ASSIGNER
def test_chunks_of_objects_change_nothing(name, monkeypatch):
    batch = random_batch(2, 7, 3)
    whole = assign(name, batch)
    for module in (atss, center, max_iou, soft_label, task_aligned):
        monkeypatch.setattr(module, "CHUNK", 2 * 2 * N)  # two objects at a time, or one
    for a, b in zip(assign(name, batch)[:4], whole[:4], strict=True):
        assert torch.equal(a, b)


@EVERY_ASSIGNER
def test_points_outside_the_image_get_nothing(name):
    batch = random_batch(2, 6, 5)
    found = assign(name, batch)
    assert not (found.object[~batch["point_valid"]] >= 0).any()
    assert found.ignored is None or not found.ignored[~batch["point_valid"]].any()
    batch["point_valid"][:] = False
    assert (assign(name, batch).object == -1).all()


@EVERY_ASSIGNER
def test_what_lies_outside_the_image_changes_nothing_inside(name):
    batch = random_batch(2, 6, 6)
    found, outside = assign(name, batch), ~batch["point_valid"].unsqueeze(-1)
    wild = batch | {
        "log_scores": torch.where(outside, -1e-4, batch["log_scores"]),
        "boxes": torch.where(outside, batch["object_boxes"][:, :1], batch["boxes"]),
    }
    for a, b in zip(assign(name, wild)[:4], found[:4], strict=True):
        assert torch.equal(a, b)


@EVERY_ASSIGNER
def test_numbers_of_background_are_0(name):
    found = assign(name, random_batch(2, 6, 7))
    background = found.object < 0
    assert background.any()
    assert (found.target[~background] > 0).all()
    for values in (found.iou, found.metric, found.target):
        assert torch.isfinite(values).all()
        assert not values[background].any()


@EVERY_ASSIGNER
def test_nothing_of_an_assignment_carries_a_gradient(name):
    batch = random_batch(1, 3, 8)
    batch |= {key: batch[key].requires_grad_() for key in ("log_scores", "boxes")}
    assert not any(t.requires_grad for t in assign(name, batch) if t is not None)
