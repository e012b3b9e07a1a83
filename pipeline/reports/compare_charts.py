"""Pictures of differences with their intervals, each an SVG text."""

from collections.abc import Mapping

from pipeline.reports.charts import CLASSES, WIDTH
from pipeline.reports.svg import ACCENT, INK, MUTED, WARM, Chart
from pipeline.statistics import Difference


def forest(differences: Mapping[str, Difference]) -> str:
    """Each difference in points with its interval; those that exclude nothing are grey."""
    wide = min(24, max(map(len, differences)))
    chart = Chart(WIDTH, 52 + 24 * len(differences), left=20 + 7 * wide, right=128, top=6, bottom=40)
    low = min(0.0, *(100 * d.low for d in differences.values()))
    high = max(0.0, *(100 * d.high for d in differences.values()))
    room = 0.04 * (high - low)
    x = chart.x_scale(low - room, high + room)
    chart.axes(x, None, "difference in points", x_count=5)
    for row, (name, d) in enumerate(differences.items()):
        y = chart.top + 24 * row + 12
        colour = MUTED if d.low <= 0 <= d.high else ACCENT if d.value > 0 else WARM
        chart.text(chart.left - 10, y + 4, name if len(name) <= wide else name[: wide - 1] + "…", anchor="end", colour=INK)
        chart.whisker((x(100 * d.low), y), (x(100 * d.high), y), colour, 2)
        chart.dot(x(100 * d.value), y, colour, radius=4.5, title=f"{name}: {100 * d.value:+.2f}, p {d.p:.3f}")
        words = f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        chart.text(chart.right + 8, y + 4, words, colour=colour, size=11)
    chart.whisker((x(0), chart.top), (x(0), chart.bottom), INK, 1)
    return chart.svg(f"{len(differences)} differences with their intervals")


def class_forest(differences: Mapping[str, Difference]) -> str:
    """The first of some classes, by falling difference."""
    shown = dict(sorted(list(differences.items())[:CLASSES], key=lambda pair: -pair[1].value))
    return forest(shown)
