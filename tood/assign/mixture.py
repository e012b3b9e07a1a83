"""Two Gaussians fitted to many small samples of numbers at once, by expectation-maximisation (PAA's probabilistic anchors).

S samples, C values a sample.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 100  # of expectation-maximisation at most; the fit, its start and its end are scikit-learn's GaussianMixture
TOLERANCE = 1e-3  # a sample has converged once its mean log likelihood moves by less
LEAST_VARIANCE = 1e-6


class Mixture(NamedTuple):
    lower: Tensor  # bool [S, C]: is the value of the component that started at the smallest
    log_likelihood: Tensor  # float64 [S, C]


@torch.no_grad()
def fit_two_gaussians(values: Tensor, valid: Tensor) -> Mixture:
    """values [S, C], valid bool [S, C]; a sample without two valid values comes out as it falls.

    Starts from the smallest and the largest value with variance 1 and equal weights. In float64, on the values' device,
    without a host sync: every step runs, samples that have converged keep their parameters.
    """
    x = torch.where(valid, values, 0.0).double().unsqueeze(-1)  # [S, C, 1]
    mask = valid.double().unsqueeze(-1)
    count = mask.sum(1).clamp(min=1)
    low = torch.where(valid, values.double(), math.inf).amin(1)
    high = torch.where(valid, values.double(), -math.inf).amax(1)
    means = torch.stack([low, high], dim=-1).nan_to_num(posinf=0.0, neginf=0.0)  # [S, 2]
    variances, weights = torch.ones_like(means), torch.full_like(means, 0.5)
    bound, done = torch.full_like(count, -math.inf), torch.zeros_like(count, dtype=torch.bool)  # [S, 1]
    for _ in range(STEPS):
        joint = _log_joint(x, means, variances, weights)
        total = joint.logsumexp(-1, keepdim=True)
        share = (joint - total).exp() * mask  # [S, C, 2]
        size = share.sum(1) + 10 * torch.finfo(torch.float64).eps
        new_means = (share * x).sum(1) / size
        new_variances = (share * x.square()).sum(1) / size - new_means.square() + LEAST_VARIANCE
        new_weights = size / size.sum(-1, keepdim=True)
        means, variances, weights = (
            torch.where(done, old, new) for old, new in ((means, new_means), (variances, new_variances), (weights, new_weights))
        )
        new_bound = (total * mask).sum(1) / count
        done = done | ((new_bound - bound).abs() < TOLERANCE)
        bound = new_bound
    joint = _log_joint(x, means, variances, weights)
    return Mixture(joint[..., 0] >= joint[..., 1], joint.logsumexp(-1))


def _log_joint(x: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """log(weight * density) [S, C, 2]."""
    means, variances = means.unsqueeze(1), variances.clamp(min=1e-12).unsqueeze(1)
    density = -0.5 * (math.log(2 * math.pi) + variances.log() + (x - means).square() / variances)
    return density + weights.unsqueeze(1).log()
