"""Pictures: boxes where they belong, labels inside the image, the same pixels every time."""

import numpy as np
import pytest
import torch
from PIL import Image

from tood.draw import class_colour, contact_sheet, draw_detections

GREY = 90
NAMES = ["RBC", "an exceedingly long class name that no small picture can hold", "Thrombozyt"]


def canvas(height: int = 120, width: int = 160) -> torch.Tensor:
    return torch.full((3, height, width), GREY, dtype=torch.uint8)


def drawn(boxes: list, labels: list, scores: list | None = None, truth: list | None = None, **size: int) -> np.ndarray:
    picture = draw_detections(
        canvas(**size),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        None if scores is None else torch.tensor(scores),
        NAMES,
        truth=None if truth is None else torch.tensor(truth).reshape(-1, 4),
    )
    return np.asarray(picture)


def touched(pixels: np.ndarray) -> np.ndarray:
    return (pixels != GREY).any(-1)


def test_a_box_is_an_outline_of_its_pixels_in_the_colour_of_its_class():
    pixels = drawn([[30, 40, 100, 90]], [2], [0.5])
    for y, x in ((40, 60), (89, 60), (60, 30), (60, 99)):
        assert tuple(pixels[y, x]) == class_colour(2)
    for y, x in ((60, 60), (90, 60), (60, 29), (60, 100)):  # inside; right outside
        assert tuple(pixels[y, x]) == (GREY,) * 3
    assert touched(pixels[:40, 30:100]).any()  # the label, above


def test_the_image_is_not_written_into():
    image = canvas()
    draw_detections(image, torch.tensor([[1.0, 1, 50, 50]]), torch.tensor([0]), torch.tensor([0.5]), NAMES)
    assert torch.equal(image, canvas())


def test_channels_stay_in_place():
    image = torch.zeros(3, 4, 5, dtype=torch.uint8)
    image[0, 1, 2], image[2, 3, 4] = 200, 100
    picture = draw_detections(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, NAMES)
    assert picture.size == (5, 4)
    assert picture.getpixel((2, 1)) == (200, 0, 0)
    assert picture.getpixel((4, 3)) == (0, 0, 100)


@pytest.mark.parametrize("seed", range(10))
def test_labels_stay_inside_the_image(seed):
    """On a canvas that is larger than the image, nothing would be drawn beyond the image's part."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(40, 200, 2))
    corners = rng.uniform(-50, 250, (6, 4))
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    labels, scores = rng.integers(0, 3, 6).tolist(), rng.random(6).tolist()
    tags = tag_areas(boxes.tolist(), labels, scores, height, width)
    assert len(tags) == sum(x1 < width and y1 < height and x2 > 0 and y2 > 0 for x1, y1, x2, y2 in boxes)
    for left, top, right, bottom in tags:
        assert 0 <= left <= right < width
        assert 0 <= top <= bottom < height


def tag_areas(boxes: list, labels: list, scores: list, height: int, width: int) -> list[tuple]:
    """The filled rectangles: every label draws one."""
    from PIL import ImageDraw

    areas, original = [], ImageDraw.ImageDraw.rectangle

    def rectangle(self, xy, fill=None, outline=None, width=1):
        if fill is not None:
            areas.append(tuple(xy))
        original(self, xy, fill=fill, outline=outline, width=width)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "rectangle", rectangle)
        drawn(boxes, labels, scores, height=height, width=width)
    return areas


def test_the_surest_detection_is_on_top_whatever_the_order():
    boxes, scores = [[30, 40, 100, 90], [30, 40, 100, 90]], [0.9, 0.3]
    pixels = drawn(boxes, [0, 2], scores)
    assert tuple(pixels[60, 30]) == class_colour(0)
    np.testing.assert_array_equal(pixels, drawn(boxes[::-1], [2, 0], scores[::-1]))


def test_boxes_that_cannot_be_seen_are_left_out():
    nan, inf = float("nan"), float("inf")
    hidden = [[-9, 5, 0, 20], [160, 0, 180, 20], [50, 50, 50, 60], [80, 60, 40, 90], [nan, 0, 5, 5], [0, 0, inf, 5]]
    assert not touched(drawn(hidden, [0] * 6, [0.5] * 6, truth=hidden)).any()


def test_truth_is_dashed_white():
    pixels = drawn([], [], [], truth=[[20, 20, 140, 100]])
    top = {tuple(pixel) for pixel in pixels[20, 20:140]}
    assert top == {(255, 255, 255), (0, 0, 0)}
    assert not touched(pixels[21:99, 21:139]).any()


def test_without_scores_the_label_is_the_name_alone():
    with_score, without = drawn([[30, 40, 100, 90]], [0], [0.5]), drawn([[30, 40, 100, 90]], [0])
    assert touched(without[20:40]).sum() < touched(with_score[20:40]).sum()
    assert touched(without[20:40]).any()


def test_equal_input_gives_equal_pixels():
    arguments = ([[30, 40, 100, 90], [0, 0, 60, 50]], [1, 2], [0.25, 0.5], [[31, 41, 99, 95]])
    np.testing.assert_array_equal(drawn(*arguments), drawn(*arguments))


def test_colours_of_eighty_classes_differ():
    colours = np.array([class_colour(label) for label in range(80)], dtype=float)
    assert len({tuple(c) for c in colours.tolist()}) == 80
    neighbours = np.abs(np.diff(colours, axis=0)).sum(1)
    assert neighbours.min() > 150


def test_a_sheet_holds_every_picture_in_reading_order():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    pictures = [Image.new("RGB", (20 + i, 10), colour) for i, colour in enumerate(colours)]
    sheet = np.asarray(contact_sheet(pictures, 2))
    assert sheet.shape == (3 * 18 + 8, 2 * 32 + 8, 3)
    centres = []
    for picture, colour in zip(pictures, colours, strict=True):
        ys, xs = np.nonzero((sheet == colour).all(-1))
        assert len(ys) == picture.width * picture.height
        centres.append((ys.mean() // 18, xs.mean() // 32))
    assert centres == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert contact_sheet(pictures[:1], 4).size == (36, 26)
    for wrong in (([], 2), (pictures, 0)):
        with pytest.raises(ValueError, match="a sheet needs pictures"):
            contact_sheet(*wrong)
