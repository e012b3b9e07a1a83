"""What a detector makes of one image: maps, best points and owners, each recomputed plainly."""

import pytest
import torch

from tests.tood import slow_analysis as slow
from tests.tood.tiny_recipe import recipe as tiny_recipe
from tood.data.batches import normalise, stack_images
from tood.data.targets import pad_targets
from tood.detectors import build_detector
from tood.explanation import explain, rendered
from tood.priors import inside_image, make_priors

HEIGHT, WIDTH = 100, 140
BOXES = torch.tensor([[10.0, 8, 70, 60], [40, 30, 120, 90], [97, 1, 103, 5]])
LABELS = torch.tensor([2, 0, 1])


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    recipe = tiny_recipe(tmp_path_factory.mktemp("none"))
    torch.manual_seed(1)
    built = build_detector(recipe.model, 3, recipe.predict)
    for name, parameter in built.named_parameters():
        if "classes" in name or "boxes" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return built.eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def predictions_of(detector, image):
    images, sizes = stack_images([image])
    with torch.no_grad():
        predictions = detector.dense(normalise(images, sizes, detector.backbone.pixels))
    return predictions, inside_image(predictions.priors, sizes)


def test_maps_and_best_points_equal_a_plain_recomputation(detector, image):
    predictions, valid = predictions_of(detector, image)
    scores, boxes = predictions.log_scores[0].exp().tolist(), predictions.boxes[0].tolist()
    points = predictions.priors.centres.tolist()
    e = explain(detector, image, BOXES, LABELS)
    assert (e.size, e.numbers) == ((HEIGHT, WIDTH), (1, 2, 3))
    for n in range(len(points)):
        assert e.score[n].item() == pytest.approx(max(scores[n][label] for label in LABELS.tolist()), rel=1e-5)
        assert e.iou[n].item() == pytest.approx(max(slow.iou(boxes[n], box) for box in BOXES.tolist()), abs=1e-5)
    for g, (box, label) in enumerate(zip(BOXES.tolist(), LABELS.tolist(), strict=True)):
        inside = [
            n
            for n, (x, y) in enumerate(points)
            if valid[0, n] and min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
        ]  # fmt: skip
        if g == 2:
            assert inside == []
            assert e.classified.point[g] == e.localised.point[g] == -1
            continue
        best_score = max(inside, key=lambda n: scores[n][label])
        best_iou = max(inside, key=lambda n: slow.iou(boxes[n], box))
        for best, n in ((e.classified, best_score), (e.localised, best_iou)):
            assert best.point[g] == n
            assert best.box[g].tolist() == pytest.approx(boxes[n])
            assert best.score[g].item() == pytest.approx(scores[n][label], rel=1e-5)
            assert best.iou[g].item() == pytest.approx(slow.iou(boxes[n], box), abs=1e-5)
    owner = detector.objective.assign(predictions, pad_targets([BOXES], [LABELS]), valid, 10**6).object[0]
    assert torch.equal(e.owner, owner)
    assert {0, 1} <= set(owner.tolist())


def test_one_object_alone_has_the_points_it_has_among_all(detector, image):
    every, second = explain(detector, image, BOXES, LABELS), explain(detector, image, BOXES, LABELS, only=1)
    assert second.numbers == (2,)
    assert second.objects.tolist() == BOXES[1:2].tolist()
    assert torch.equal(second.owner >= 0, every.owner == 1)
    assert second.classified.point.item() == every.classified.point[1]
    assert (second.iou <= every.iou).all()
    twins = explain(detector, image, BOXES[[1, 1]], LABELS[[1, 1]], only=1)
    assert (second.owner >= 0).any()
    assert not (twins.owner >= 0).any()  # the first of two equal objects gets all


@pytest.mark.parametrize("boxes", [None, torch.zeros(0, 4)])
def test_without_annotations_it_is_the_best_detection(detector, image, boxes):
    predictions, valid = predictions_of(detector, image)
    scores = torch.where(valid[0].unsqueeze(1), predictions.log_scores[0], -torch.inf)
    point, label = divmod(int(scores.argmax()), 3)
    e = explain(detector, image, boxes, None if boxes is None else torch.zeros(0).long())
    assert e.numbers == ()
    assert e.labels.tolist() == [label]
    assert torch.equal(e.objects[0], predictions.boxes[0, point])
    assert e.iou[point] == pytest.approx(1)
    assert e.score.max() == pytest.approx(float(scores.max().exp()))


def test_a_map_shows_at_each_place_the_highest_of_the_nearest_points():
    size = (64, 96)
    priors = make_priors(((8, 12), (4, 6), (2, 3), (1, 2), (1, 1)), torch.device("cpu"))
    values = torch.rand(len(priors.centres), generator=torch.Generator().manual_seed(2))
    valid = torch.rand(len(values), generator=torch.Generator().manual_seed(3)) < 0.9
    picture = rendered(values, priors, valid, size, cell=4)
    assert picture.shape == (16, 24)
    for row in range(16):
        for column in range(24):
            place = torch.tensor([column + 0.5, row + 0.5]) * 4
            best, start = 0.0, 0
            for count in priors.counts:
                level = slice(start, start + count)
                nearest = (priors.centres[level] - place).square().sum(1).argmin() + start
                best, start = max(best, float(values[nearest]) if valid[nearest] else 0.0), start + count
            assert picture[row, column].item() == pytest.approx(best)


def test_of_several_priors_at_a_place_the_highest_shows():
    priors = make_priors(((2, 2), (1, 1), (1, 1), (1, 1), (1, 1)), torch.device("cpu"))
    twice = priors._replace(centres=priors.centres.repeat_interleave(2, 0), counts=tuple(2 * count for count in priors.counts))
    values = torch.tensor([0.1, 0.5, 0.4, 0.2, 0.3, 0.0, 0.0, 0.6, *[0.0] * 8])
    picture = rendered(values, twice, torch.ones(16, dtype=torch.bool), (16, 16), cell=8)
    assert picture.tolist() == [[pytest.approx(v) for v in row] for row in ([0.5, 0.4], [0.3, 0.6])]
