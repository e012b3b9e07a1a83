"""Pictures of a sweep, each an SVG text. Figures are points: hundredths of COCO's scale."""

import itertools
import math
from collections.abc import Mapping, Sequence

from pipeline.reports.bins import Axis, means
from pipeline.reports.svg import ACCENT, INK, MUTED, SERIES, WARM, Chart, number, on_shade, shade
from pipeline.reports.sweep_facts import Facts, Trial

WIDTH = 560  # px of a chart that has half of the page
DOTS = 400  # most trials behind a curve
NAMED_CURVES = 7
CLASSES = 24


def heat_map(first: Axis, second: Axis, trials: Sequence[Trial], metric: str) -> str:
    """Mean of the metric at each pair of two axes' values, over whatever else differs, with the number of trials."""
    cells = means([first, second], trials)
    known = [100 * cell.mean for cell in cells.values()]
    low, high = min(known), max(known)
    wide = max(map(len, first.labels))
    chart = Chart(WIDTH, 78 + 46 * len(first.labels), left=28 + 7 * wide, top=8, bottom=70)
    step_x = (chart.right - chart.left) / len(second.labels)
    step_y = (chart.bottom - chart.top) / len(first.labels)
    best = max(cells, key=lambda cell: cells[cell].mean)
    for row, label in enumerate(first.labels):
        y = chart.top + step_y * (len(first.labels) - 1 - row)
        chart.text(chart.left - 8, y + step_y / 2 + 4, label, anchor="end", colour=MUTED)
        for column, other in enumerate(second.labels):
            x = chart.left + step_x * column
            cell = cells.get((row, column))
            if cell is None:
                chart.rect(
                    x + 1,
                    y + 1,
                    step_x - 2,
                    step_y - 2,
                    "#f4f6f8",
                    radius=3,
                    title=f"{first.name} {label}, {second.name} {other}: no trial",
                )
                continue
            share = (100 * cell.mean - low) / (high - low) if high > low else 1.0
            half = "" if math.isnan(cell.half) else f" ± {100 * cell.half:.1f}"
            title = f"{first.name} {label}, {second.name} {other}: {100 * cell.mean:.2f}{half}, {cell.count} trials"
            chart.rect(x + 1, y + 1, step_x - 2, step_y - 2, shade(share), radius=3, title=title)
            ink = on_shade(share)
            chart.text(
                x + step_x / 2,
                y + step_y / 2 + 2,
                f"{100 * cell.mean:.1f}",
                anchor="middle",
                colour=ink,
                bold=(row, column) == best,
            )
            chart.text(x + step_x / 2, y + step_y / 2 + 16, f"n {cell.count}", anchor="middle", colour=ink, size=11)
    for column, label in enumerate(second.labels):
        chart.text(chart.left + step_x * (column + 0.5), chart.bottom + 16, label, anchor="middle", colour=MUTED)
    chart.text((chart.left + chart.right) / 2, chart.bottom + 34, second.name, anchor="middle")
    _label_left(chart, first.name)
    _colour_key(chart, low, high)
    return chart.svg(f"{metric} by {first.name} and {second.name}, from {low:.1f} to {high:.1f}")


def axis_curve(axis: Axis, trials: Sequence[Trial], metric: str) -> str:
    """The metric over one axis: every trial, and the mean at each value with its 95 % interval."""
    shown = [t for t in trials if t.value is not None and axis.name in t.settings]
    cells = {cell[0]: mean for cell, mean in means([axis], shown).items()}
    chart = Chart(WIDTH, 280, bottom=44)
    values = [100 * t.value for t in shown]
    y = chart.y_scale(min(values), max(values))
    even = not axis.numeric
    centres = [float(i) for i in range(len(axis.labels))] if even else axis.centres
    margin = 0.5 if even else 0.04 * ((centres[-1] - centres[0]) or 1)
    log = axis.log and not even
    x = (
        chart.x_scale(centres[0] / 1.15, centres[-1] * 1.15, log=True)
        if log
        else chart.x_scale(centres[0] - margin, centres[-1] + margin)
    )
    chart.axes(x if axis.binned else None, y, axis.name, metric)
    crowded = len(axis.labels) > 8 or max(map(len, axis.labels)) * len(axis.labels) > 66
    for place, (centre, label) in enumerate(zip(centres, axis.labels, strict=True)):
        if not axis.binned and (not crowded or place % 2 == 0):
            chart.text(x(centre), chart.bottom + 17, label, anchor="middle", colour=MUTED, size=11 if crowded else 0)
    faint = 0.25 if len(shown) > 60 else 0.7
    for trial in shown[:: max(1, len(shown) // DOTS)]:
        setting = trial.settings[axis.name]
        at = float(axis.place(setting)) if even else setting
        chart.dot(x(at), y(100 * trial.value), MUTED, radius=2.5, opacity=faint)
    points = [(x(centres[i]), y(100 * cells[i].mean)) for i in sorted(cells)]
    if not even:
        chart.line(points, ACCENT, width=2.2)
    for i, point in zip(sorted(cells), points, strict=True):
        cell = cells[i]
        if not math.isnan(cell.half):
            ends = (y(_inside(y, 100 * (cell.mean + s * cell.half))) for s in (-1, 1))
            chart.whisker(*((point[0], end) for end in ends), ACCENT)
        half = "one trial" if math.isnan(cell.half) else f"± {100 * cell.half:.2f}, {cell.count} trials"
        chart.dot(*point, ACCENT, radius=4.5, title=f"{axis.name} {axis.labels[i]}: {100 * cell.mean:.2f} ({half})")
    return chart.svg(f"{metric} over {axis.name}")


def learning_curves(facts: Facts) -> str:
    """The metric over epochs of the best trials; the first few in colours of their own, named at the side."""
    names = {t.run_id: t for t in facts.trials}
    curves = {run: [(e, 100 * v) for e, v in points] for run, points in facts.curves.items() if points}
    chart = Chart(WIDTH, 300)
    every = [point for points in curves.values() for point in points]
    x = chart.x_scale(min(e for e, _ in every), max(e for e, _ in every))
    y = chart.y_scale(min(v for _, v in every), max(v for _, v in every))
    chart.axes(x, y, "epoch", facts.metric)
    for place, (run, points) in reversed(list(enumerate(curves.items()))):
        colour = SERIES[place] if place < NAMED_CURVES else "#c3ccd4"
        title = f"{place + 1}. {words(names[run], facts.axes)}: {max(v for _, v in points):.2f}"
        spots = [(x(e), y(v)) for e, v in points]
        chart.line(spots, colour, width=2.6 if place == 0 else 1.6, title=title)
        for spot in spots if len(spots) <= 24 else spots[-1:]:
            chart.dot(*spot, colour, radius=2.6, title=title)
    return chart.svg(f"{facts.metric} over epochs of the {len(curves)} best trials")


def curve_key(facts: Facts) -> list[tuple[str, str]]:
    """(colour, words) of the curves that have a colour of their own."""
    names = {t.run_id: t for t in facts.trials}
    shown = [run for run, points in facts.curves.items() if points][:NAMED_CURVES]
    return [(SERIES[i], f"{i + 1}. {words(names[run], facts.axes)}") for i, run in enumerate(shown)]


def class_deltas(best: Mapping[str, float], baseline: Mapping[str, float]) -> str:
    """AP of each class, best trial minus baseline; of many classes those that differ most."""
    deltas = {name: 100 * (best[name] - baseline[name]) for name in best if name in baseline}
    shown = sorted(deltas, key=lambda name: -abs(deltas[name]))[:CLASSES]
    shown.sort(key=lambda name: -deltas[name])
    wide = min(22, max(map(len, shown)))
    chart = Chart(WIDTH, 46 + 20 * len(shown), left=20 + 7 * wide, right=20, top=6, bottom=40)
    reach = 1.25 * (max(abs(deltas[name]) for name in shown) or 1.0)
    x = chart.x_scale(min(0.0, -reach if min(deltas.values()) < 0 else 0.0), max(0.0, reach if max(deltas.values()) > 0 else 0.0))
    chart.axes(x, None, "difference in AP")
    for row, name in enumerate(shown):
        y, delta = chart.top + 20 * row + 3, deltas[name]
        left, right = sorted((x(0), x(delta)))
        title = f"{name}: {100 * best[name]:.1f} against {100 * baseline[name]:.1f}"
        chart.rect(left, y, right - left, 14, ACCENT if delta >= 0 else WARM, title=title, radius=2)
        chart.text(chart.left - 8, y + 11, name if len(name) <= wide else name[: wide - 1] + "…", anchor="end", colour=INK)
        chart.text(x(delta) + (5 if delta >= 0 else -5), y + 11, f"{delta:+.1f}", anchor="start" if delta >= 0 else "end", size=11)
    chart.whisker((x(0), chart.top), (x(0), chart.bottom), MUTED, 1)
    return chart.svg(f"difference of AP in {len(shown)} classes")


def cost_chart(trials: Sequence[Trial], costs: Sequence[float], label: str, metric: str, axes: Sequence[str]) -> str:
    """A cost against the metric; the front joins trials than which none is both cheaper and better."""
    order = sorted(range(len(trials)), key=lambda i: (costs[i], -trials[i].value))
    front, reached = [], -math.inf
    for i in order:
        if trials[i].value > reached:
            front.append(i)
            reached = trials[i].value
    chart = Chart(WIDTH, 300)
    log = min(costs) > 0 and max(costs) / min(costs) > 30
    span = (max(costs) - min(costs)) or max(abs(max(costs)), 1.0)
    x = (
        chart.x_scale(min(costs), max(costs) * 1.1, True)
        if log
        else chart.x_scale(min(costs) - 0.04 * span, max(costs) + 0.04 * span)
    )
    y = chart.y_scale(min(100 * t.value for t in trials), max(100 * t.value for t in trials))
    chart.axes(x, y, label, metric)
    for trial, cost in zip(trials, costs, strict=True):
        title = f"{words(trial, axes)}: {100 * trial.value:.2f} at {number(cost)} {label}"
        chart.dot(x(cost), y(100 * trial.value), MUTED, radius=3, opacity=0.35, title=title)
    spots = [(x(costs[i]), y(100 * trials[i].value)) for i in front]
    corners = [spot for a, b in itertools.pairwise(spots) for spot in (a, (b[0], a[1]))] + spots[-1:]
    if len(corners) > 1:
        chart.line(corners, WARM, width=1.6, dash="4 3")
    for i, spot in zip(front, spots, strict=True):
        chart.dot(
            *spot, WARM, radius=4.5, title=f"{words(trials[i], axes)}: {100 * trials[i].value:.2f} at {number(costs[i])} {label}"
        )
    return chart.svg(f"{metric} against {label}; {len(front)} trials lie on the front")


def beside_published(rows: Sequence[tuple[str, float, float]], metric: str) -> str:
    """A paper's figure beside the measured one. rows: (cell, measured, published), on COCO's scale."""
    wide = min(30, max(len(name) for name, _, _ in rows))
    chart = Chart(WIDTH, 50 + 24 * len(rows), left=18 + 7 * wide, right=64, top=6, bottom=40)
    every = [100 * v for _, *pair in rows for v in pair]
    x = chart.x_scale(min(every) - 0.5, max(every) + 0.5)
    chart.axes(x, None, metric)
    for row, (name, ours, theirs) in enumerate(rows):
        y = chart.top + 24 * row + 12
        chart.text(chart.left - 8, y + 4, name if len(name) <= wide else name[: wide - 1] + "…", anchor="end")
        chart.whisker((x(100 * ours), y), (x(100 * theirs), y), "#c3ccd4", 2)
        chart.diamond(x(100 * theirs), y, WARM, f"published {100 * theirs:.1f}")
        chart.dot(x(100 * ours), y, ACCENT, radius=5, title=f"measured {100 * ours:.2f}")
        chart.text(chart.right + 8, y + 4, f"{100 * (ours - theirs):+.1f}", colour=MUTED)
    return chart.svg(f"{len(rows)} published figures beside measured ones")


def words(trial: Trial, axes: Sequence[str]) -> str:
    """A trial's settings in few words."""
    told = ", ".join(f"{a} {number(v) if isinstance(v, float) else v}" for a in axes if (v := trial.settings.get(a)) is not None)
    return told or trial.name


def _inside(y, value: float) -> float:
    return min(max(value, y.low), y.high)


def _label_left(chart: Chart, name: str) -> None:
    chart.labels(y_label=name)


def _colour_key(chart: Chart, low: float, high: float) -> None:
    width, y = 120, chart.bottom + 48
    left = (chart.left + chart.right) / 2 - width / 2
    for i in range(24):
        chart.rect(left + width * i / 24, y, width / 24 + 0.5, 9, shade(i / 23))
    chart.text(left - 6, y + 9, f"{low:.1f}", anchor="end", colour=MUTED, size=11)
    chart.text(left + width + 6, y + 9, f"{high:.1f}", colour=MUTED, size=11)
