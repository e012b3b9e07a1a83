"""What is ranked, and what is cut from the graph."""

import math

import pytest
import torch

from tests.tood.dense import make_predictions
from tood.predictions import FUSIONS, Quality, detached


def test_confidence_is_score_score_times_quality_or_their_geometric_mean():
    predictions = make_predictions(quality="iou")
    score, quality = predictions.log_scores.exp(), predictions.quality.logits.sigmoid().unsqueeze(-1)
    expected = {"none": score, "product": score * quality, "geometric_mean": (score * quality).sqrt()}
    assert set(expected) == set(FUSIONS)
    for fusion in FUSIONS:
        torch.testing.assert_close(predictions.log_confidence(fusion).exp(), expected[fusion])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_without_a_quality_branch_confidence_is_the_score(fusion):
    predictions = make_predictions()
    assert torch.equal(predictions.log_confidence(fusion), predictions.log_scores)


def test_confidence_survives_where_probabilities_underflow():
    predictions = make_predictions()
    predictions = predictions._replace(
        log_scores=torch.full_like(predictions.log_scores, -90.0), quality=Quality("iou", torch.full((2, 86), -200.0))
    )
    found = predictions.log_confidence("geometric_mean")
    assert found[0, 0, 0].item() == pytest.approx(-145)
    assert math.isfinite(found.sum())


def test_detached_predictions_are_the_same_values_without_their_graph():
    predictions = make_predictions(quality="iou", bins=4, raw=True, coarse=True)
    predictions = predictions._replace(one_to_one=make_predictions(seed=1))
    cut = detached(predictions)
    pairs = [
        (cut.log_scores, predictions.log_scores),
        (cut.boxes, predictions.boxes),
        (cut.quality.logits, predictions.quality.logits),
        (cut.distribution.logits, predictions.distribution.logits),
        (cut.raw, predictions.raw),
        (cut.coarse, predictions.coarse),
        (cut.one_to_one.log_scores, predictions.one_to_one.log_scores),
    ]
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs)
        assert theirs.requires_grad
        assert not ours.requires_grad
    assert cut.priors is predictions.priors
    assert (cut.quality.kind, cut.distribution.width) == ("iou", 0.5)
