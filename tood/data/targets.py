"""The objects of a batch, padded to the same number an image."""

from typing import NamedTuple

import torch
from torch import Tensor


class Targets(NamedTuple):
    """B images, G = most objects in an image of the batch (may be 0), I = most crowd regions."""

    boxes: Tensor  # float32 [B, G, 4] px of the network's input
    labels: Tensor  # int64 [B, G]
    valid: Tensor  # bool [B, G]: False where a row is padding
    crowds: Tensor | None = None  # float32 [B, I, 4]: regions an objective may ignore; padding rows have no area

    def to(self, device: torch.device, non_blocking: bool = False) -> "Targets":
        return Targets(*(t if t is None else t.to(device, non_blocking=non_blocking) for t in self))


def boxes_of(targets: Targets, owner: Tensor) -> Tensor:
    """Box of each point's object: owner int64 [B, N] -> [B, N, 4]; an arbitrary box where owner is -1."""
    boxes = targets.boxes if targets.boxes.shape[1] else targets.boxes.new_zeros(owner.shape[0], 1, 4)
    return boxes.gather(1, owner.clamp(min=0).unsqueeze(-1).expand(-1, -1, 4))


def labels_of(targets: Targets, owner: Tensor) -> Tensor:
    """Label of each point's object: owner int64 [B, N] -> [B, N]; an arbitrary label where owner is -1."""
    labels = targets.labels if targets.labels.shape[1] else targets.labels.new_zeros(owner.shape[0], 1)
    return labels.gather(1, owner.clamp(min=0))


def pad_targets(boxes: list[Tensor], labels: list[Tensor], crowds: list[Tensor] | None = None) -> Targets:
    """Lists of [G_i, 4], [G_i] and [I_i, 4] -> Targets."""
    rows = max((len(b) for b in boxes), default=0)
    valid = torch.stack([torch.arange(rows, device=b.device) < len(b) for b in boxes])
    padded_labels = torch.stack([torch.cat([x.long(), x.new_zeros(rows - len(x)).long()]) for x in labels])
    return Targets(_pad_boxes(boxes), padded_labels, valid, _pad_boxes(crowds) if crowds else None)


def _pad_boxes(boxes: list[Tensor]) -> Tensor:
    rows = max((len(b) for b in boxes), default=0)
    return torch.stack([torch.cat([b.float(), b.new_zeros(rows - len(b), 4).float()]) for b in boxes])
