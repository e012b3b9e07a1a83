"""The picture of an explanation: a row a detector, as in TOOD's Figures 1 and 4, and the points that each object got."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from pipeline.plots.runs import INK
from tood.draw import class_colour
from tood.explanation import Explanation, rendered

TRUTH, CLASSIFIED, LOCALISED = "#ffd60a", "#e5383b", "#2dc653"  # yellow, red and green, as in the paper
PANEL = 4.2  # inches, the longer side of a panel
LEAST = 4.0  # typographic points: no marker is smaller, or in large images none could be seen
CELL = 2  # px of the network's input that a map's cell is wide


def explanation_picture(image: Tensor, rows: Sequence[tuple[str, Explanation]], title: str) -> Image.Image:
    """image: u8 [3,H,W], as the detectors saw it or larger; rows: a detector's name and what it makes of the image."""
    height, width = rows[0][1].size
    wide, high = (PANEL, PANEL * height / width) if width >= height else (PANEL * width / height, PANEL)
    figure = Figure(figsize=(4 * wide + 0.9, (high + 0.1) * len(rows) + 1.25), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    heights = [high] * len(rows) + [0.13]  # the last row holds what explains the colours
    *panels, below = figure.subplots(len(rows) + 1, 4, squeeze=False, height_ratios=heights)
    photo = image.permute(1, 2, 0).numpy()
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    maps = [[rendered(values, e.priors, e.valid, e.size, CELL).numpy() for values in (e.score, e.iou)] for _, e in rows]
    top = max(*(float(score.max()) for score, _ in maps), 1e-6)  # one scale for all rows, or they could not be compared
    for (name, e), (best, score, iou, points), (score_map, iou_map) in zip(rows, panels, maps, strict=True):
        scale = 72 * wide / e.size[1]  # typographic points a px
        _ground(best, photo, e.size)
        _best_points(best, e, scale)
        heats = _heat(score, score_map, grey, e, top), _heat(iou, iou_map, grey, e, 1.0)
        _ground(points, grey, e.size)
        _owners(points, e, scale)
        best.set_ylabel(name, fontsize=10, color=INK)
    first = rows[0][1]
    objects = "objects" if len(first.objects) > 1 else "object" if first.numbers else "best detection"
    heads = ("best point of each task, and its box", "score", "IoU", f"points that learn the {objects}")
    for panel, head in zip(panels[0], heads, strict=True):
        panel.set_title(head, fontsize=11, color=INK)
    for axes, heat, label in (
        (below[1], heats[0], f"score in the class of the {objects}"),
        (below[2], heats[1], f"IoU of a point's box with the {objects}"),
    ):
        figure.colorbar(heat, cax=axes, orientation="horizontal").outline.set_visible(False)
        axes.set_xlabel(label, fontsize=9)
        axes.tick_params(labelsize=8)
    _legends(below[0], below[3], "annotated" if first.numbers else "best detection")
    figure.suptitle(title, fontsize=12, color=INK)
    return _drawn(figure)


def _ground(axes: Axes, picture: np.ndarray, size: tuple[int, int]) -> None:
    """The image under a panel, in px of the network's input."""
    height, width = size
    grey = {"cmap": "gray", "vmin": -80, "vmax": 255} if picture.ndim == 2 else {}
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="bilinear", **grey)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _heat(axes: Axes, values: np.ndarray, grey: np.ndarray, e: Explanation, top: float) -> AxesImage:
    """A map over the grey image, the more opaque the higher; the objects' outlines above."""
    _ground(axes, grey, e.size)
    rows, columns = values.shape
    heat = axes.imshow(values, extent=(0, columns * CELL, rows * CELL, 0), cmap="inferno", vmin=0, vmax=top)
    heat.set_alpha(np.clip(0.55 + 0.45 * values / top, 0, 1))
    for box in e.objects.tolist():
        axes.add_patch(_outline(box, "white", 0.8, linestyle=(0, (3, 2))))
    axes.set(xlim=(0, e.size[1]), ylim=(e.size[0], 0))
    return heat


def _best_points(axes: Axes, e: Explanation, scale: float) -> None:
    """Patches on the best points, and the boxes predicted there; where both tasks choose the same point, red alone."""
    for box in e.objects.tolist():
        axes.add_patch(_outline(box, TRUTH, 1.6))
    apart = e.localised.point != e.classified.point
    for best, colour, shown in ((e.localised, LOCALISED, apart), (e.classified, CLASSIFIED, torch.ones_like(apart))):
        shown = shown & (best.point >= 0)
        for point, box in zip(best.point[shown].tolist(), best.box[shown].tolist(), strict=True):
            axes.add_patch(_outline(box, colour, 1.2))
            side, (x, y) = max(float(e.priors.strides[point]), LEAST / scale), e.priors.centres[point].tolist()
            axes.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, color=colour, alpha=0.85, lw=0))


def _owners(axes: Axes, e: Explanation, scale: float) -> None:
    """A disc on each point that learns an object, in the object's colour, larger on coarser levels."""
    for i, box in enumerate(e.objects.tolist()):
        colour = [channel / 255 for channel in class_colour(i)]
        axes.add_patch(_outline(box, colour, 1.3))
        mine = e.owner == i
        strides, (x, y) = e.priors.strides[mine], e.priors.centres[mine].unbind(1)
        sizes = (strides * scale * 0.7).clamp(min=LEAST).square()
        axes.scatter(x, y, s=sizes, color=colour, alpha=0.6, edgecolors="white", linewidths=0.4)
        if e.numbers:
            x, y = (max(corner, 0) for corner in box[:2])
            axes.text(x, y, f" {e.numbers[i]}", color=INK, fontsize=7, va="top", clip_on=True)


def _outline(box: Sequence[float], colour, width: float, **style) -> Rectangle:
    x1, y1, x2, y2 = box
    return Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=width, **style)


def _legends(left: Axes, right: Axes, truth: str) -> None:
    for axes in (left, right):
        axes.axis("off")
    marks = [
        Line2D([], [], ls="", marker="s", ms=7, color=colour, label=label)
        for colour, label in ((TRUTH, truth), (CLASSIFIED, "classification"), (LOCALISED, "localisation"))
    ]
    left.legend(handles=marks, loc="center", ncol=3, columnspacing=1.2, fontsize=9, frameon=False, handletextpad=0.2)
    right.text(0.5, 0.5, "a colour an object; the larger a disc, the coarser its level", ha="center", va="center", fontsize=9)


def _drawn(figure: Figure) -> Image.Image:
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return Image.open(data).convert("RGB")
