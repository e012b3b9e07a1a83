"""PAA's split against a plain loop over objects and levels, fitted by scikit-learn."""

import warnings

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture
from torch import Tensor

from tood.assign.ownership import Assignment
from tood.assign.probabilistic import split_by_loss
from tood.priors import make_priors

PRIORS = make_priors(((6, 6), (3, 3), (2, 2), (1, 1), (1, 1)), torch.device("cpu"))
N = len(PRIORS.centres)


def first_assignment(owner: Tensor) -> Assignment:
    """As max-IoU's, with other numbers than 1 to see them go."""
    positive = (owner >= 0).float()
    iou = positive * (0.1 + torch.arange(N) / N)
    return Assignment(owner, iou, positive, positive, torch.zeros_like(owner, dtype=torch.bool))


def split(owner: Tensor, losses: Tensor, objects: int, topk: int = 9) -> Assignment:
    return split_by_loss(first_assignment(owner), losses, PRIORS, objects, topk=topk)


def slow_split(owner: list[int], losses: list[float], objects: int, topk: int) -> list[int]:
    """The peer's scheme: of the sorted candidates in the first component, those up to its highest likelihood."""
    kept = [-1] * N
    for g in range(objects):
        candidates, start = [], 0
        for count in PRIORS.counts:
            mine = [p for p in range(start, start + count) if owner[p] == g]
            candidates += sorted(mine, key=lambda p: (losses[p], p))[:topk]
            start += count
        if len(candidates) < 2:
            continue
        candidates.sort(key=lambda p: (losses[p], p))
        x = torch.tensor([[losses[p]] for p in candidates]).double().numpy()
        model = GaussianMixture(
            2, covariance_type="diag", means_init=[x[0], x[-1]], precisions_init=[[1.0], [1.0]], weights_init=[0.5, 0.5]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x)
        component, likelihood = model.predict(x), model.score_samples(x)
        lower = [i for i in range(len(candidates)) if component[i] == 0]
        if lower:
            most_likely = max(range(len(lower)), key=lambda i: (likelihood[lower[i]], -i))
            for i in lower[: most_likely + 1]:
                kept[candidates[i]] = g
    return kept


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 5), st.sampled_from([1, 2, 9, 100]), st.booleans())
def test_the_split_is_the_plain_loop(seed, objects, topk, ties):
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(-1, objects, (2, N), generator=generator) if objects else torch.full((2, N), -1)
    losses = 3 * torch.rand(2, N, generator=generator)
    if ties:
        losses = (losses * 2).round() / 2
    found = split(owner, losses, objects, topk)
    for i in range(2):
        assert found.object[i].tolist() == slow_split(owner[i].tolist(), losses[i].tolist(), objects, topk)


def test_what_stays_keeps_its_object_and_iou_and_the_rest_becomes_background():
    generator = torch.Generator().manual_seed(0)
    owner = torch.randint(-1, 3, (2, N), generator=generator)
    found = split(owner, torch.rand(2, N, generator=generator) * 4, 3)
    stays = found.object >= 0
    assert stays.any()
    assert not stays[owner < 0].any()
    assert torch.equal(found.object[stays], owner[stays])
    assert torch.equal(found.iou, torch.where(stays, first_assignment(owner).iou, 0.0))
    assert torch.equal(found.target, stays.float())
    assert found.ignored is None


def test_an_object_with_one_candidate_gets_none():
    owner = torch.full((1, N), -1)
    owner[0, 3] = 0
    owner[0, [5, 6]] = 1
    losses = torch.linspace(0, 1, N)[None]
    found = split(owner, losses, 2)
    assert (found.object != 0).all()
    assert (found.object == 1).any()


def test_of_equal_losses_the_lower_anchor_is_the_candidate():
    owner = torch.full((1, N), -1)
    owner[0, :20] = 0
    losses = torch.full((1, N), 0.5)
    losses[0, 19] = 3.0  # sets the higher component apart
    found = split(owner, losses, 1, topk=4)
    assert set((found.object[0] == 0).nonzero().flatten().tolist()) <= {0, 1, 2, 3}
    assert found.object[0, 0] == 0


def test_a_clear_gap_separates_good_from_bad_anchors():
    owner = torch.full((1, N), -1)
    owner[0, 30:40] = 0
    losses = torch.ones(1, N)
    losses[0, 30:40] = torch.tensor([5.0, 0.5, 5.1, 0.55, 4.9, 0.45, 5.2, 5.0, 5.1, 5.3])
    found = (split(owner, losses, 1).object[0] == 0).nonzero().flatten().tolist()
    assert found
    assert set(found) <= {31, 33, 35}
