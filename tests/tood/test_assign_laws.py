"""Laws that any assignment of a batch keeps: objects may be renumbered and padded, images put together, work cut in chunks."""

import pytest
import torch
from torch import Tensor

from tood.assign.atss import assign_atss
from tood.assign.ownership import Assignment
from tood.assign.task_aligned import assign_task_aligned
from tood.priors import make_priors

PRIORS = make_priors(((6, 6), (3, 3), (2, 2), (1, 1), (1, 1)), torch.device("cpu"))
N, K = len(PRIORS.centres), 3


def random_batch(b: int, g: int, seed: int) -> dict[str, Tensor]:
    r = torch.Generator().manual_seed(seed)
    reach = torch.rand(b, N, 4, generator=r) * 20 * torch.tensor([-1, -1, 1, 1])
    corner, side = torch.rand(b, g, 2, generator=r) * 30 - 4, torch.rand(b, g, 2, generator=r) * 30 + 4
    return {
        "log_scores": torch.rand(b, N, K, generator=r).log(),
        "boxes": PRIORS.centres.repeat(1, 2) + reach,
        "object_boxes": torch.cat([corner, corner + side], dim=2),
        "object_labels": torch.randint(K, (b, g), generator=r),
        "object_valid": torch.ones(b, g, dtype=torch.bool),
        "point_valid": torch.rand(b, N, generator=r) > 0.1,
    }


def run(name: str, batch: dict[str, Tensor]) -> Assignment:
    if name == "atss":
        used = {k: batch[k] for k in ("object_boxes", "object_valid", "point_valid")}
        return assign_atss(PRIORS, topk=4, **used)
    return assign_task_aligned(centres=PRIORS.centres, alpha=1.0, beta=6.0, m=5, candidates=name, **batch)


ASSIGNERS = pytest.mark.parametrize("name", ["all", "inside", "atss"])


@ASSIGNERS
def test_renumbering_the_objects_renumbers_the_owners(name):
    batch, order = random_batch(3, 6, 0), torch.tensor([3, 0, 5, 1, 4, 2])
    found = run(name, batch)
    mixed = run(name, batch | {k: v[:, order] for k, v in batch.items() if k.startswith("object_")})
    assert (found.object >= 0).any()
    assert torch.equal(torch.where(mixed.object >= 0, order[mixed.object], -1), found.object)
    assert torch.equal(mixed.target, found.target)


@ASSIGNERS
def test_padding_rows_change_nothing_wherever_they_stand(name):
    batch = random_batch(2, 4, 1)
    rows = torch.tensor([0, 1, 0, 2, 3, 3])  # copies of real objects, marked as padding
    padded = batch | {k: v[:, rows] for k, v in batch.items() if k.startswith("object_")}
    padded["object_valid"] = torch.tensor([[1, 1, 0, 1, 1, 0]]).bool().expand(2, 6)
    found, same = run(name, batch), run(name, padded)
    assert torch.equal(torch.where(same.object >= 0, rows[same.object], -1), found.object)
    assert torch.equal(same.iou, found.iou)
    assert torch.equal(same.target, found.target)


@ASSIGNERS
def test_a_batch_is_each_image_alone(name):
    batch = random_batch(4, 5, 2)
    batch["object_valid"][1] = False
    together = run(name, batch)
    for i in range(4):
        alone = run(name, {k: v[i : i + 1] for k, v in batch.items()})
        for a, b in zip(alone[:4], together[:4], strict=True):
            assert torch.equal(a[0], b[i])
    assert not (together.object[1] >= 0).any()


@ASSIGNERS
def test_chunks_of_objects_change_nothing(name, monkeypatch):
    batch = random_batch(2, 7, 3)
    whole = run(name, batch)
    for module in ("task_aligned", "atss"):
        monkeypatch.setattr(f"tood.assign.{module}.CHUNK", 2 * 2 * N)  # two objects at a time
    for a, b in zip(run(name, batch)[:4], whole[:4], strict=True):
        assert torch.equal(a, b)


@ASSIGNERS
def test_without_objects_everything_is_background(name):
    found = run(name, random_batch(2, 0, 4))
    assert (found.object == -1).all()
    assert not found.target.any()
    assert not found.iou.any()


@ASSIGNERS
def test_points_outside_the_image_get_nothing(name):
    batch = random_batch(2, 6, 5)
    assert not (run(name, batch).object[~batch["point_valid"]] >= 0).any()
    batch["point_valid"][:] = False
    assert (run(name, batch).object == -1).all()
