"""How cost grows: times at several sizes of the same work, and the exponent of the power of the size that they follow."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tood.bench.cases import Sizes, assigners, drawn_predictions
from tood.bench.timing import Turns


class Growth(NamedTuple):
    what: str  # whose cost
    over: str  # what grows
    sizes: list[int]
    seconds: list[float]  # median at each size
    exponent: float  # 1: proportional; less: there is a part that does not grow


def growths(sizes: Sizes, device: torch.device, seconds: float) -> Iterator[Growth]:
    """Of assignment, over the objects of an image and over images."""
    height, width = sizes.image
    objects = [(2, count) for count in (5, 10, 20, 40, 80, 160, 320)]
    images = [(count, 20) for count in (1, 2, 4, 8, 16)]
    for over, shapes, which in (("objects an image", objects, 1), ("images", images, 0)):
        calls = {shape: assigners(*drawn_predictions(*shape, height, width, device)) for shape in shapes}
        for what in next(iter(calls.values())):
            turns = Turns({str(shape): calls[shape][what] for shape in shapes}, device)
            turns.warm_up(2)
            turns.run(seconds / 2, 5)
            yield growth_of(f"assign {what}", over, [shape[which] for shape in shapes], list(turns.times.values()))


def growth_of(what: str, over: str, sizes: Sequence[int], times: Sequence[Sequence[float]]) -> Growth:
    """The straight line through the logarithms of size and median time."""
    medians = [float(np.median(own)) for own in times]
    exponent = float(np.polyfit(np.log(sizes), np.log(medians), 1)[0])
    return Growth(what, over, list(sizes), medians, exponent)


def draw(found: Sequence[Growth], path: Path) -> None:
    """A picture with a field for each thing that grows, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    kinds = list(dict.fromkeys(growth.over for growth in found))
    figure = Figure(figsize=(5 * len(kinds), 4), layout="constrained")
    for axes, over in zip(np.atleast_1d(figure.subplots(1, len(kinds))), kinds, strict=True):
        for growth in found:
            if growth.over == over:
                axes.loglog(growth.sizes, [1000 * s for s in growth.seconds], "o-", label=f"{growth.what}: {growth.exponent:.2f}")
        axes.set(xlabel=over, ylabel="ms")
        axes.legend(title="exponent", loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.set_xticks(sorted({size for growth in found if growth.over == over for size in growth.sizes}))
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
