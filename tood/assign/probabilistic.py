"""PAA: an object's anchors are split by a mixture of two Gaussians over their losses; the better component is positive.

B images, G objects, N anchors, L levels, C = L * topk candidates an object.
"""

import torch
from torch import Tensor

from tood.assign.mixture import fit_two_gaussians
from tood.assign.ownership import Assignment
from tood.devices import any_order
from tood.priors import Priors, of_levels


@torch.no_grad()
def split_by_loss(first: Assignment, losses: Tensor, priors: Priors, num_objects: int, *, topk: int) -> Assignment:
    """`first` holds every potential positive, losses [B, N] what each costs now; positives that stay keep their object.

    A level gives an object's topk anchors of least loss (ties to the lower index). Of all these, fitted as two Gaussians, the
    anchors of the lower component up to its most likely one stay, in order of loss. An object with one candidate gets none.
    The peer's rules, scheme (c) of PAA's Figure 3.
    """
    b, n = losses.shape
    levels, slots = len(priors.counts), len(priors.counts) * topk
    level = of_levels(range(levels), priors.counts, losses.device)
    nobody = num_objects * levels
    group = torch.where(first.object >= 0, first.object * levels + level, nobody)  # [B, N]
    # anchors by group, and by loss within it: two stable sorts
    order = losses.argsort(dim=1, stable=True)
    order = order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))
    group = group.gather(1, order)
    rank = torch.arange(n, device=losses.device) - torch.searchsorted(group, group)
    # laid out as [B, G, C]: the last column takes what is not a candidate and is cut off
    chosen = (rank < topk) & (group < nobody)
    column = torch.where(chosen, (group // levels) * slots + group % levels * topk + rank, num_objects * slots)
    anchor = torch.full((b, num_objects * slots + 1), -1, dtype=torch.int64, device=losses.device)
    with any_order():  # only the last column is written twice
        anchor.scatter_(1, column, order)
    anchor = anchor[:, :-1].view(b, num_objects, slots)
    valid = anchor >= 0
    cost = losses.gather(1, anchor.clamp(min=0).flatten(1)).view_as(anchor).masked_fill(~valid, torch.inf)
    cost, by_cost = cost.sort(dim=-1, stable=True)
    anchor, valid = anchor.gather(-1, by_cost), valid.gather(-1, by_cost)

    fitted = fit_two_gaussians(cost.flatten(0, 1), valid.flatten(0, 1))
    lower = fitted.lower.view_as(valid) & valid & (valid.sum(-1, keepdim=True) > 1)
    likelihood = fitted.log_likelihood.view_as(cost).masked_fill(~lower, -torch.inf)
    peak = (likelihood == likelihood.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1, keepdim=True)
    stays = lower & (torch.arange(slots, device=losses.device) <= peak)

    kept = torch.zeros(b, n + 1, dtype=torch.bool, device=losses.device)
    with any_order():  # all write the same
        kept.scatter_(1, torch.where(stays, anchor, n).flatten(1), True)
    kept = kept[:, :n]
    ones = kept.float()
    return Assignment(first.object.masked_fill(~kept, -1), first.iou * ones, ones, ones)
