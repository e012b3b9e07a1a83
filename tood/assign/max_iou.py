"""RetinaNet's assignment: anchors by their highest IoU, and for every object at least its best anchors.

B images, G objects, N anchors.
"""

import torch
from torch import Tensor

from tood.assign.ownership import Assignment
from tood.boxes import pairwise_iou

CHUNK = 1 << 23  # elements of the largest temporary (objects x anchors)


@torch.no_grad()
def assign_max_iou(
    anchors: Tensor,
    object_boxes: Tensor,
    object_valid: Tensor,
    point_valid: Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
) -> Assignment:
    """anchors [N, 4], object_boxes [B, G, 4], object_valid bool [B, G], point_valid bool [B, N].

    An anchor belongs to the object of its highest IoU (ties: the lower index) if that is at least `positive_iou`, is
    background below `negative_iou` and ignored between. Whatever its IoU, the best anchors of an object (all that share
    its highest IoU, if above 0) become the object's; of several such objects the one with the higher index (the peer's
    order).
    """
    (b, g), n = object_valid.shape, anchors.shape[0]
    highest = anchors.new_zeros(b, n)
    owner = torch.full((b, n), -1, dtype=torch.int64, device=anchors.device)
    chunks = range(0, g, max(1, CHUNK // (b * n)))

    def ious(i: int) -> Tensor:
        part = slice(i, i + chunks.step)
        iou = pairwise_iou(object_boxes[:, part], anchors)
        return iou.masked_fill(~(object_valid[:, part].unsqueeze(-1) & point_valid.unsqueeze(1)), -1.0)

    for i in chunks:
        iou = ious(i)
        peak = iou.amax(1, keepdim=True)
        first = (iou == peak).to(torch.uint8).argmax(1)  # torch's own argmax leaves ties open
        better = peak.squeeze(1) > highest
        highest, owner = torch.where(better, peak.squeeze(1), highest), torch.where(better, first + i, owner)
    ignored = (highest >= negative_iou) & (highest < positive_iou) & point_valid
    owner = owner.masked_fill(highest < positive_iou, -1)
    for i in chunks:
        iou = ious(i)
        best = iou.amax(2, keepdim=True)
        mine = (iou == best) & (best > 0)
        index = torch.arange(i, i + iou.shape[1], device=iou.device).view(1, -1, 1)
        forced = torch.where(mine, index, -1).amax(1)
        theirs = iou.gather(1, (forced - i).clamp(min=0).unsqueeze(1)).squeeze(1)
        owner, highest = torch.where(forced >= 0, forced, owner), torch.where(forced >= 0, theirs, highest)
    positive = owner >= 0
    ones = positive.float()
    return Assignment(owner, torch.where(positive, highest, 0.0), ones, ones, ignored & ~positive)
