"""The dense head: where it starts, which number goes to which prior, what reads what, and precision."""

import pytest
import torch
from torch import nn

from tests.tood.dense import SIZES, K, make_head, make_pyramid, stir
from tood.head import DenseHead

ODD = ((6, 8), (3, 4), (2, 2), (1, 1), (1, 1))
FORMS = {
    "tood": {"aligner": "both"},
    "tood_anchor_based": {"aligner": "both", "box": "delta", "prior": "anchor"},
    "parallel": {"tower": "parallel"},
    "atss": {"tower": "parallel", "quality": "centerness"},
    "fcos": {"tower": "parallel", "box": "distance_px", "offset": 0.5, "quality": "centerness", "quality_from": "classes"},
    "foveabox": {"tower": "parallel", "box": "distance_base", "offset": 0.5},
    "retinanet": {"tower": "parallel", "box": "delta_unit", "prior": "nine_anchors"},
    "gfl": {"tower": "parallel", "box": "distribution"},
    "aligned_gfl": {"aligner": "both", "box": "distribution"},
    "vfnet": {"tower": "parallel", "box": "distance_reach", "star": True},
    "tscode": {"tower": "parallel", "context": "both", "quality": "iou"},
    "tscode_nine_anchors": {"tower": "parallel", "context": "both", "prior": "nine_anchors", "box": "delta"},
    "efficient": {"tower": "et_head", "context": "dpe"},
}
EVERY_FORM = pytest.mark.parametrize("form", FORMS)


def in_order(head: DenseHead, values: torch.Tensor) -> None:
    """A predictor that says the same numbers everywhere."""
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(values)


@EVERY_FORM
def test_predictions_cover_every_prior_and_start_at_probability_one_percent(form):
    predictions = make_head(**FORMS[form])(*make_pyramid(ODD))
    per_location = 9 if "nine" in FORMS[form].get("prior", "") else 1
    assert predictions.log_scores.shape == (2, 66 * per_location, K)
    assert predictions.boxes.shape == (2, 66 * per_location, 4)
    assert predictions.priors.counts == tuple(n * per_location for n in (48, 12, 4, 1, 1))
    probability = predictions.log_scores.exp()
    assert probability.mean().item() == pytest.approx(0.01, abs=5e-4)
    assert (probability - 0.01).abs().max() < 0.005


@EVERY_FORM
def test_optional_parts_are_there_exactly_where_they_were_chosen(form):
    choices = FORMS[form]
    predictions = make_head(**choices)(*make_pyramid())
    n = len(predictions.priors.centres)
    assert (predictions.quality is not None) == ("quality" in choices)
    assert predictions.quality is None or (predictions.quality.kind, predictions.quality.logits.shape) == (
        choices["quality"],
        (2, n),
    )
    assert (predictions.distribution is not None) == (choices.get("box") == "distribution")
    assert predictions.distribution is None or predictions.distribution.logits.shape == (2, n, 4, 17)
    assert (predictions.raw is not None) == (choices.get("box") in ("distance_base", "delta_unit"))
    assert (predictions.coarse is not None) == choices.get("star", False)
    assert predictions.one_to_one is None


def test_scores_boxes_and_quality_go_to_priors_anchor_by_anchor():
    """Channel a * K + k is class k of anchor a of a location; so are 4 a + side, and a."""
    head = make_head("parallel", "delta", prior="nine_anchors", quality="iou")
    in_order(head.predictor.classes, -torch.arange(9.0 * K))
    in_order(head.predictor.boxes, torch.arange(36.0) / 36)
    in_order(head.predictor.quality, torch.arange(9.0))
    found = head(*make_pyramid())
    torch.testing.assert_close(found.log_scores[1], nn.functional.logsigmoid(-torch.arange(9.0 * K)).view(9, K).repeat(86, 1))
    assert torch.equal(found.quality.logits[0], torch.arange(9.0).repeat(86))
    size = found.priors.anchors[:, 2:] - found.priors.anchors[:, :2]
    middle = (found.boxes[0, :, :2] + found.boxes[0, :, 2:]) / 2
    shift = (torch.arange(36.0) / 36).view(9, 4)[:, :2].repeat(86, 1) * 0.1
    torch.testing.assert_close((middle - found.priors.centres) / size, shift, rtol=1e-4, atol=1e-5)


def test_a_coarse_cell_of_semantic_context_speaks_for_its_four_cells_apart():
    """TSCODE, Eq. 4: channel (2 dy + dx) * A K + a K + k is about the cell (2 y + dy, 2 x + dx)."""
    head = make_head("parallel", "delta", prior="nine_anchors", context="sce")
    in_order(head.predictor.classes, -torch.arange(4.0 * 9 * K))
    found = head(*make_pyramid(ODD)).log_scores[0].split([9 * h * w for h, w in ODD])
    for level, (height, width) in zip(found, ODD, strict=True):
        quadrant = 2 * (torch.arange(height) % 2).view(-1, 1) + torch.arange(width) % 2
        channel = quadrant.view(-1, 1, 1) * 9 * K + torch.arange(9 * K).view(1, 9, K)
        torch.testing.assert_close(level.view(-1, 9, K), nn.functional.logsigmoid(-channel.float()))


def test_a_levels_learnt_scale_is_its_own():
    head = make_head("parallel", "distance")
    in_order(head.predictor.boxes, torch.tensor([1.0, 2, 3, 4]).log())  # left, top, right, bottom
    with torch.no_grad():
        head.predictor.scales.copy_(torch.tensor([1.0, 2, 3, 4, 5]))
    _, boxes, priors, *_ = head(*make_pyramid())
    scale = torch.repeat_interleave(head.predictor.scales.detach(), torch.tensor(priors.counts))
    reach = (priors.strides * scale)[:, None] * torch.tensor([-1.0, -2, 3, 4])
    torch.testing.assert_close(boxes[0], priors.centres.repeat(1, 2) + reach)


@pytest.mark.parametrize("form", [name for name in FORMS if name != "fcos"])  # whose numbers are pixels on every level
def test_boxes_of_the_same_numbers_grow_with_the_stride(form):
    head = make_head(**{**FORMS[form], "star": False})
    nn.init.zeros_(head.predictor.boxes.weight)
    if head.predictor.side_offsets is not None:
        nn.init.zeros_(head.predictor.side_offsets.predict.weight)
    nn.init.constant_(head.predictor.boxes.bias, 0.3)
    boxes, priors = head(*make_pyramid())[1:3]
    relative = (boxes[0] - priors.centres.repeat(1, 2)) / priors.strides[:, None]
    anchors = len(head.grid.shapes)
    torch.testing.assert_close(relative[anchors:], relative[:anchors].repeat(len(relative) // anchors - 1, 1), rtol=1e-4, atol=1e-4)


@EVERY_FORM
def test_each_level_keeps_to_its_own_place(form):
    """Noise on one level changes the priors of that level alone, but where context looks at the levels around."""
    head, (pyramid, finer) = stir(make_head(**FORMS[form])), make_pyramid()
    before = head(pyramid, finer)
    pyramid[1] = pyramid[1] + torch.randn_like(pyramid[1])
    after = head(pyramid, finer)
    context = FORMS[form].get("context", "none")
    class_levels = [0, 1] if context == "both" else [1]  # SCE looks at the level above
    box_levels = [1] if context == "none" else [0, 1, 2]  # DPE at both neighbours
    for name, levels in (("log_scores", class_levels), ("boxes", box_levels)):
        changed = (getattr(before, name) != getattr(after, name)).any(-1).any(0).split(before.priors.counts)
        assert [i for i, level in enumerate(changed) if level.any()] == levels


@pytest.mark.parametrize(
    ("aligner", "moves_scores", "moves_boxes"),
    [("none", False, False), ("cls", True, False), ("box", False, True), ("both", True, True)],
)
@pytest.mark.parametrize("box", ["distance", "distribution"])
def test_the_aligner_moves_the_task_that_it_names(aligner, moves_scores, moves_boxes, box):
    plain, aligned = stir(make_head(box=box)), stir(make_head(box=box, aligner=aligner))
    aligned.load_state_dict(plain.state_dict(), strict=False)
    before, after = plain(*make_pyramid()), aligned(*make_pyramid())
    assert (not torch.equal(before.log_scores, after.log_scores)) == moves_scores
    assert (not torch.equal(before.boxes, after.boxes)) == moves_boxes
    if box == "distribution":  # which stays what the boxes were read from
        assert torch.equal(before.distribution.logits, after.distribution.logits)


@pytest.mark.parametrize("box", ["distance_base", "delta_unit"])
@pytest.mark.parametrize("aligner", ["none", "cls", "box"])
def test_raw_numbers_are_handed_on_where_boxes_still_are_what_they_say(box, aligner):
    prior = "anchor" if box == "delta_unit" else "point"
    found = stir(make_head(box=box, aligner=aligner, prior=prior))(*make_pyramid())
    assert (found.raw is None) == (aligner == "box")
    if box == "distance_base" and found.raw is not None:
        reach = 2 * found.priors.strides[:, None] * found.raw.exp() * torch.tensor([-1, -1, 1, 1])
        torch.testing.assert_close(found.boxes, found.priors.centres.repeat(1, 2) + reach)


def test_the_distribution_is_the_one_that_was_decoded_scale_included():
    head = stir(make_head("parallel", "distribution"))
    with torch.no_grad():
        head.predictor.scales.copy_(torch.tensor([0.5, 1, 2, 3, 4]))
    found = head(*make_pyramid())
    distances = (found.distribution.logits.softmax(-1) * torch.arange(17.0)).sum(-1) * found.priors.strides[:, None]
    expected = found.priors.centres.repeat(1, 2) + distances * torch.tensor([-1, -1, 1, 1])
    torch.testing.assert_close(found.boxes, expected, rtol=1e-5, atol=1e-3)
    assert found.distribution.width == 1.0


@pytest.mark.parametrize(("source", "other"), [("boxes", "classes"), ("classes", "boxes")])
def test_quality_reads_the_features_that_it_names(source, other):
    head = stir(make_head("parallel", quality="iou", quality_from=source))
    head(*make_pyramid()).quality.logits.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in getattr(head.tower, source).parameters())
    assert all(p.grad is None for p in getattr(head.tower, other).parameters())


def test_a_second_predictor_reads_the_same_features_and_sends_no_gradient_back():
    head = stir(make_head(aligner="both", one_to_one=True))
    head.one_to_one.load_state_dict(head.predictor.state_dict())
    found = head(*make_pyramid())
    assert torch.equal(found.one_to_one.log_scores, found.log_scores)
    assert torch.equal(found.one_to_one.boxes, found.boxes)
    (found.one_to_one.log_scores.sum() + found.one_to_one.boxes.sum()).backward()
    assert all(p.grad.any() for p in head.one_to_one.parameters())
    assert all(p.grad is None for module in (head.tower, head.predictor) for p in module.parameters())


@EVERY_FORM
def test_predictions_are_float32_under_bfloat16(form):
    head = stir(make_head(**FORMS[form]))
    exact = head(*make_pyramid())
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(*make_pyramid())
    parts = [rough.log_scores, rough.boxes, rough.raw, rough.coarse]
    parts += [rough.quality and rough.quality.logits, rough.distribution and rough.distribution.logits]
    assert {part.dtype for part in parts if part is not None} == {torch.float32}
    assert (rough.log_scores - exact.log_scores).abs().mean() < 0.05


@EVERY_FORM
def test_channels_last_changes_nothing(form):
    head, (pyramid, finer) = stir(make_head(**FORMS[form])), make_pyramid()
    plain = head(pyramid, finer)
    last = [p.contiguous(memory_format=torch.channels_last) for p in (*pyramid, finer)]
    other = head.to(memory_format=torch.channels_last)(last[:-1], last[-1])
    for name in ("log_scores", "boxes"):
        torch.testing.assert_close(getattr(other, name), getattr(plain, name), rtol=1e-4, atol=1e-3)


@EVERY_FORM
@pytest.mark.parametrize("raw", [500.0, -500.0])  # exp(500) is infinite
def test_wild_weights_still_give_finite_boxes_and_gradients(form, raw):
    head = make_head(**FORMS[form])
    nn.init.constant_(head.predictor.boxes.bias, raw)
    boxes = head(*make_pyramid()).boxes
    boxes.sum().backward()
    assert torch.isfinite(boxes).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    assert torch.isfinite(area).all()
    assert len(boxes[0]) == len(head.grid.shapes) * sum(h * w for h, w in SIZES)


@pytest.mark.parametrize("form", ["tood", "tscode", "vfnet"])
def test_checkpointing_keeps_less_and_gives_the_same_bits(form):
    pyramid = make_pyramid()
    found, kept = [], []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for checkpointing in (False, True):
        head = stir(make_head(**FORMS[form]))
        head.checkpointing = checkpointing
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            predictions = head(*pyramid)
        forward = kept[-1]
        (predictions.log_scores.sum() + predictions.boxes.square().sum()).backward()
        kept[-1] = forward
        found.append({name: p.grad for name, p in head.named_parameters() if p.grad is not None})
    assert kept[1] < kept[0] / 3
    assert found[0].keys() == found[1].keys() != set()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
