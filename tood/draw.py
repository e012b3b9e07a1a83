"""Detections drawn on their image, and sheets of such pictures. PIL alone; equal input gives equal pixels.

Solid boxes with a name and a score are detections, a colour a class; thin dashed white boxes are the truth.
"""

import colorsys
import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GOLDEN_RATIO = 0.618033988749895  # turns of the colour wheel between classes: neighbours differ, no colour returns soon
MARGIN, BACKGROUND = 8, (32, 32, 32)  # of a sheet: px, RGB


def draw_detections(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    names: Sequence[str],
    *,
    truth: Tensor | None = None,
) -> Image.Image:
    """Draw boxes [D,4] (xyxy px) with labels [D] and scores [D] on an RGB image uint8 [3,H,W]; truth: boxes [G,4].

    The surest detection is drawn last, on top. Boxes are cut to the image; those that are empty there, or not finite,
    are left out.
    """
    picture = Image.fromarray(image.detach().cpu().permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(picture)
    thickness = max(1, round(min(picture.size) / 300))
    font = ImageFont.load_default(max(10, round(min(picture.size) / 36)))
    for box in [] if truth is None else truth.tolist():
        if corners := _visible(box, picture.size):
            _dashed(draw, corners, dash=4 + 2 * thickness)
    order = range(len(boxes)) if scores is None else torch.argsort(scores.detach().cpu(), stable=True).tolist()
    found, labels = boxes.tolist(), labels.tolist()
    shown = [(i, corners) for i in order if (corners := _visible(found[i], picture.size))]
    for i, corners in shown:
        draw.rectangle(corners, outline=class_colour(labels[i]), width=thickness)
    for i, corners in shown:  # after all boxes, so that no line runs through a text
        score = "" if scores is None else f" {scores[i].item():.2f}"
        _tag(draw, corners, names[labels[i]], score, class_colour(labels[i]), font, picture.size)
    return picture


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures in reading order, `columns` a row, each centred in a cell as large as the largest."""
    if not pictures or columns < 1:
        raise ValueError(f"a sheet needs pictures and columns, got {len(pictures)} pictures in {columns} columns")
    columns = min(columns, len(pictures))
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (width + MARGIN) + MARGIN, rows * (height + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, BACKGROUND)
    for i, picture in enumerate(pictures):
        left = MARGIN + i % columns * (width + MARGIN) + (width - picture.width) // 2
        top = MARGIN + i // columns * (height + MARGIN) + (height - picture.height) // 2
        sheet.paste(picture, (left, top))
    return sheet


def class_colour(label: int) -> tuple[int, int, int]:
    """A bright RGB colour that a class keeps in every picture."""
    hue, value = (0.33 + label * GOLDEN_RATIO) % 1, (1.0, 0.85)[label // 8 % 2]
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.85, value))


def _visible(box: list[float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """First and last pixel of the part of a box that lies in the image."""
    if not all(map(math.isfinite, box)):
        return None
    (x1, x2), (y1, y2) = ((max(low, 0), min(high, side)) for low, high, side in zip(box[:2], box[2:], size, strict=True))
    if x1 >= x2 or y1 >= y2:
        return None
    left, top = min(int(x1), size[0] - 1), min(int(y1), size[1] - 1)
    return left, top, max(math.ceil(x2) - 1, left), max(math.ceil(y2) - 1, top)


def _dashed(draw: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], dash: int) -> None:
    """A white dashed line on a dark one, so that it shows on any ground."""
    left, top, right, bottom = corners
    draw.rectangle(corners, outline=(0, 0, 0), width=1)
    for x in range(left, right + 1, 2 * dash):
        for y in (top, bottom):
            draw.line((x, y, min(x + dash - 1, right), y), fill=(255, 255, 255), width=1)
    for y in range(top, bottom + 1, 2 * dash):
        for x in (left, right):
            draw.line((x, y, x, min(y + dash - 1, bottom)), fill=(255, 255, 255), width=1)


def _tag(
    draw: ImageDraw.ImageDraw,
    corners: tuple[int, int, int, int],
    name: str,
    score: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    """A filled label above the box, or inside its top; moved, and its name shortened, to stay in the image."""
    while name and draw.textlength(name + score, font) + 4 > size[0]:
        name = name[:-1]
    ascent, descent = font.getmetrics()
    width, height = math.ceil(draw.textlength(name + score, font)) + 4, ascent + descent
    left = max(0, min(corners[0], size[0] - width))
    top = corners[1] - height if corners[1] >= height else max(0, min(corners[1], size[1] - height))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((left + 2, top), name + score, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)
