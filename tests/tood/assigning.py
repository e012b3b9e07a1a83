"""Every assigner on the same kind of input, for laws that all of them keep.

A batch is a dict: log_scores [B, N, K], boxes [B, N, 4], object_boxes [B, G, 4], object_labels [B, G], object_valid [B, G],
point_valid [B, N]. Coordinates are multiples of 1/1024 px, so that a mirrored image has exactly mirrored numbers.
"""

import pytest
import torch
from torch import Tensor

from tood.assign.ownership import Assignment
from tood.data.targets import Targets
from tood.objectives.atss import ATSS
from tood.objectives.ddod import DDOD
from tood.objectives.fcos import FCOS
from tood.objectives.foveabox import FoveaBox
from tood.objectives.paa import PAA
from tood.objectives.retinanet import RetinaNet
from tood.objectives.soft_label import SoftLabel
from tood.objectives.task_aligned import TaskAligned
from tood.predictions import Predictions
from tood.priors import PriorGrid, make_priors

WIDTH, HEIGHT = 256, 128  # every level's grid maps onto itself when mirrored
SIZES = ((16, 32), (8, 16), (4, 8), (2, 4), (1, 2))
PRIORS = make_priors(SIZES, torch.device("cpu"), PriorGrid(centre_offset=0.5))
N, K = len(PRIORS.centres), 3

ASSIGNERS = {
    "task_aligned": TaskAligned(warmup_epochs=0, m=5),
    "task_aligned_inside": TaskAligned(warmup_epochs=0, m=5, candidates="inside"),
    "task_aligned_widened": TaskAligned(warmup_epochs=0, m=5, candidates="inside", widen_small=True),
    "atss": ATSS(topk=4),
    "ddod": DDOD(topk=4),
    "center": FCOS(radius=1.5),
    "center_whole_box": FCOS(radius=0.0),
    "fovea": FoveaBox(sigma=0.4),
    "max_iou": RetinaNet(),
    "probabilistic": PAA(topk=4),
    "soft_label": SoftLabel(topk=5),
}
EVERY_ASSIGNER = pytest.mark.parametrize("name", ASSIGNERS)


def grained(values: Tensor) -> Tensor:
    return (values * 1024).round() / 1024


def random_batch(b: int, g: int, seed: int) -> dict[str, Tensor]:
    r = torch.Generator().manual_seed(seed)
    reach = torch.rand(b, N, 4, generator=r) * 40 * torch.tensor([-1, -1, 1, 1])
    corner = torch.rand(b, g, 2, generator=r) * torch.tensor([WIDTH - 20.0, HEIGHT - 20.0]) - 4
    side = torch.rand(b, g, 2, generator=r).square() * 120 + 6
    return {
        "log_scores": torch.rand(b, N, K, generator=r).log(),
        "boxes": grained(PRIORS.centres.repeat(1, 2) + reach),
        "object_boxes": grained(torch.cat([corner, corner + side], dim=2)),
        "object_labels": torch.randint(K, (b, g), generator=r),
        "object_valid": torch.ones(b, g, dtype=torch.bool),
        "point_valid": torch.rand(b, N, generator=r) > 0.1,
    }


def assign(name: str, batch: dict[str, Tensor]) -> Assignment:
    targets = Targets(batch["object_boxes"], batch["object_labels"], batch["object_valid"])
    predictions = Predictions(batch["log_scores"], batch["boxes"], PRIORS)
    return ASSIGNERS[name].assign(predictions, targets, batch["point_valid"], 0)


def of_objects(batch: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The batch with its objects picked by `rows`."""
    return batch | {key: value[:, rows] for key, value in batch.items() if key.startswith("object_")}


def renamed(owner: Tensor, names: Tensor) -> Tensor:
    """Owner i becomes names[i]; -1 stays."""
    return torch.where(owner >= 0, names[owner.clamp(min=0)], -1)
