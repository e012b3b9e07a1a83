"""`tood report`: a sweep on one page, an HTML file that needs nothing else, beside the sweep and in MLflow."""

import math
import statistics
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.reports import charts
from pipeline.reports import html_page as html
from pipeline.reports.bins import Axis, axis_of, told_apart
from pipeline.reports.compare import compare, verdict
from pipeline.reports.subjects import Place, read_subjects
from pipeline.reports.svg import SEQUENCE, nice_ticks
from pipeline.reports.sweep_facts import Facts, Trial, gather, per_class
from pipeline.statistics import Sample, between_seeds, difference, mean_error
from pipeline.tracking.access import connect
from pipeline.tracking.facts import flat_params
from pipeline.tracking.runs import Run
from tood.atomic import write_file
from tood.config import to_dict
from tood.errors import ConfigError, DataError, ToodError

ARTIFACT = "report.html"
SHOWN_TRIALS = 25
SHOWN_GROUPS = 15
SHOWN_AXES = 6
CELLS = 9  # most values of an axis in a heat map as they are
QUICK_IMAGES = 2000  # up to so many, comparing two detections takes seconds


def report_sweep(
    sweep: str,
    tracking: str,
    target: Path | None = None,
    *,
    baseline: str = "",
    quick: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Path, Facts]:
    """Write a sweep's page to `target` (or SWEEP.html here) and to its summary run, if it has one.

    baseline: run id or name of the trial that the best is set beside. quick: leave out what takes longer than the sweep's end
    should. Raises ConfigError for a sweep that MLflow does not know.
    """
    connect(tracking)
    facts = gather(sweep, tracking)
    target = target or Path(f"{facts.sweep}.html")
    text = page_of(facts, tracking, baseline=baseline, quick=quick, say=say)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, text.encode())
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from None
    if facts.summary:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / ARTIFACT
            file.write_text(text)
            Run.attach(tracking, facts.summary.run_id).file(file)
    return target, facts


def page_of(
    facts: Facts, tracking: str | None, *, baseline: str = "", quick: bool = False, say: Callable[[str], None] = lambda line: None
) -> str:
    """The page as HTML. tracking: where artifacts of the best trial and the baseline are read; None: nowhere."""
    known = [t for t in facts.trials if t.value is not None]
    content = [f"<h1>{escape(facts.sweep)}</h1>"]
    if facts.description:
        content.append(f'<p class="muted">{escape(facts.description)}</p>')
    content.append(html.facts(_headline(facts, known)))
    if not known:
        content.append(html.card("", "<p>No trial has a figure yet.</p>"))
        return html.page(f"Sweep {facts.sweep}", content)
    verdict_card, classes = _against_baseline(facts, known, tracking, baseline, quick, say)
    axes = [axis_of(name, known) for name in facts.axes if any(name in t.settings for t in known)]
    axes = [axis for axis in axes if len(axis.labels) > 1]
    cards = [verdict_card, *_seeds(facts, known)]
    if axes:
        cards.append(_parallel(facts))
    cards += _axis_cards(facts, known, axes)
    if any(facts.curves.values()):
        cards.append(_curves(facts))
    cards.append(classes)
    cards += _costs(facts, known)
    cards += _published(facts, known)
    cards.append(_table(facts))
    content.append(f'<div class="grid">{"".join(cards)}</div>')
    return html.page(f"Sweep {facts.sweep}", content, _data(facts, axes))


def baseline_of(facts: Facts, known: list[Trial], wanted: str) -> tuple[Trial, str]:
    """The trial that the best is set beside, and what it is: the one asked for, the one with the experiment's own settings, or
    the median."""
    if wanted:
        found = [t for t in known if wanted in (t.run_id, t.name)]
        if not found:
            raise ConfigError(f"--baseline: {wanted!r} is neither run id nor name of a trial of {facts.sweep} that has a figure")
        return found[0], "the baseline"
    if facts.experiment:
        own = flat_params(to_dict(facts.experiment), swept=[])
        plain = [t for t in known[1:] if t.settings and all(_same(own.get(name), value) for name, value in t.settings.items())]
        if plain:
            return plain[0], "the experiment's own settings"
    return known[len(known) // 2], "the median trial"


def _headline(facts: Facts, known: list[Trial]) -> list[tuple[str, str]]:
    failed = sum(t.status == "failed" for t in facts.trials)
    hours = sum(t.minutes or 0 for t in facts.trials) / 60
    pairs = [(f"{len(facts.trials):,}", "trials" + (f", {failed} failed" if failed else ""))]
    if known:
        values = [100 * t.value for t in known]
        pairs.insert(0, (f"{values[0]:.2f}", f"best {facts.metric}: {charts.words(known[0], facts.axes)}"))
        pairs.append((f"{statistics.median(values):.2f}", f"median {facts.metric}; figures are points, hundredths"))
    pairs.append((f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.0f} min", "of all trials' runs together"))
    return pairs


def _against_baseline(
    facts: Facts, known: list[Trial], tracking: str | None, wanted: str, quick: bool, say: Callable[[str], None]
) -> tuple[str, str]:
    """The card with the verdict and the one with the classes; either may be empty."""
    if len(known) < 2:
        return "", ""
    best = known[0]
    other, what = baseline_of(facts, known, wanted)
    told = f"Best: {charts.words(best, facts.axes)}. {what.capitalize()}: {charts.words(other, facts.axes)}."
    told += f" Chosen as the best of {len(known):,}, it owes some of its figure to the choice."
    said = _verdict(facts, tracking, other, best, quick, say) if tracking else None
    if said is None:
        gap = f"{100 * (best.value - other.value):.2f} {facts.metric.removeprefix('val/')}"
        said = f"The best trial is {gap} above {what}; one run each, so how much of it is luck is not known."
    body = f'<p><b>{escape(said)}</b></p><p class="muted">{escape(told)}</p>'
    said_card, classes = html.card("", body, wide=True, extra="verdict"), ""
    ours, theirs = (per_class(tracking, t, facts.curves.get(t.run_id, ())) if tracking else {} for t in (best, other))
    if set(ours) & set(theirs):
        note = f"Best trial minus {what}, at each one's best epoch" + (
            f"; the {charts.CLASSES} of {len(ours)} that differ most" if len(ours) > charts.CLASSES else ""
        )
        classes = html.card("Classes", charts.class_deltas(ours, theirs), note)
    return said_card, classes


def _verdict(facts: Facts, tracking: str, first: Trial, second: Trial, quick: bool, say: Callable[[str], None]) -> str | None:
    """Whether the best trial's AP is more than chance over the images; None where detections or annotations are not at hand."""
    if facts.experiment is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        place = Place(tracking, Path(folder), {"data": to_dict(facts.experiment.data)}, None)
        try:
            truth, subjects = read_subjects([first.run_id, second.run_id], place, say, stored_only=True)
        except ToodError as error:
            say(f"best and baseline are not compared image by image: {error}")
            return None
    if quick and len(truth.image_ids) > QUICK_IMAGES:
        return None
    found = compare(subjects, truth).others[0]
    return verdict("the other", "the best trial", found.differences["AP"], found.same)


def _seeds(facts: Facts, known: list[Trial]) -> list[str]:
    """Configurations with several seeds, ranked by their means, and what the first two's difference is."""
    groups: dict[tuple, list[Trial]] = {}
    for trial in known:
        groups.setdefault(tuple(sorted(trial.settings.items())), []).append(trial)
    if max(len({t.seed for t in group}) for group in groups.values()) < 2:
        return []
    ranked = sorted(groups.values(), key=lambda group: -statistics.fmean(t.value for t in group))
    body = []
    for place, group in enumerate(ranked[:SHOWN_GROUPS], start=1):
        mean, spread, error = (100 * v for v in mean_error([t.value for t in group]))
        sure = ["-" if math.isnan(v) else f"{v:.2f}" for v in (spread, error)]
        body.append([str(place), charts.words(group[0], facts.axes), f"{mean:.2f}", *sure, str(len(group))])
    note = _first_two(ranked, facts) + (f" The first {SHOWN_GROUPS} of {len(ranked)}." if len(ranked) > SHOWN_GROUPS else "")
    head = ["", "configuration", f"mean {facts.metric}", "sd of seeds", "standard error", "seeds"]
    return [html.card("Means over seeds", html.rows(head, body, [True, False, True, True, True, True]), note, wide=True)]


def _first_two(ranked: list[list[Trial]], facts: Facts) -> str:
    if len(ranked) < 2:
        return ""
    samples = [Sample(v, np.tile(v[:, None], (1, 2))) for group in ranked for v in [np.array([t.value for t in group])]]
    found = difference(samples[1], samples[0], between_seeds(samples), 2)
    low, high = 100 * found.low, 100 * found.high
    words = "cannot be told apart" if low <= 0 <= high else "differ"
    return (
        f"The first two {words}: {100 * found.value:+.2f} [{low:+.2f}, {high:+.2f}] over seeds, 95 %, not corrected for the choice."
    )


def _parallel(facts: Facts) -> str:
    body = (
        '<div id="parallel"><canvas role="img" aria-label="parallel coordinates of all trials"></canvas></div>'
        '<div class="bar"><span id="chosen" aria-live="polite"></span><button id="clear" hidden>clear choice</button></div>'
        "<noscript><p>This chart needs JavaScript; the others do not.</p></noscript>"
    )
    note = "A line is a trial, darker the better its rank. Drag along an axis to choose trials; the table follows."
    return html.card("All trials", body, note, wide=True)


def _axis_cards(facts: Facts, known: list[Trial], axes: list[Axis]) -> list[str]:
    cards = []
    weight = {axis.name: told_apart(axis, known) for axis in axes}
    pair = [a for name in ("alpha", "beta") for a in axes if a.name == name]
    if len(pair) < 2:
        pair = sorted(axes, key=lambda a: -weight[a.name])[:2]
    if len(pair) == 2:
        first, second = pair
        first, second = (axis_of(axis.name, known, few=CELLS) for axis in (first, second))
        note = "Mean over whatever else the trials differ in; n is their number. Where n is small, a cell says little."
        cards.append(html.card(f"{first.name} × {second.name}", charts.heat_map(first, second, known, facts.metric), note))
    order = sorted(axes, key=lambda a: (a.name != "m", -weight[a.name]))
    for axis in order[:SHOWN_AXES]:
        note = f"Blue: mean with its 95 % interval; grey: trials. {weight[axis.name]:.0%} of the variance lies between its values."
        cards.append(html.card(axis.name, charts.axis_curve(axis, known, facts.metric), note))
    return cards


def _curves(facts: Facts) -> str:
    key = "".join(f'<li><i style="background:{colour}"></i>{escape(said)}</li>' for colour, said in charts.curve_key(facts))
    shown = sum(bool(points) for points in facts.curves.values())
    return html.card("Learning curves", f'{charts.learning_curves(facts)}<ul class="key">{key}</ul>', f"The best {shown} trials.")


def _costs(facts: Facts, known: list[Trial]) -> list[str]:
    kinds = (
        ("GMAC", "GMAC of an image of 1280 x 800", lambda t: t.cost and t.cost.gmac),
        ("parameters", "million trained parameters", lambda t: t.cost and t.cost.trainable_params / 1e6),
        ("time", "minutes of the run", lambda t: t.minutes),
    )
    cards = []
    for name, label, cost_of in kinds:
        pairs = [(t, cost) for t in known if (cost := cost_of(t))]
        if len({cost for _, cost in pairs}) > 1:
            trials, costs = zip(*pairs, strict=True)
            chart = charts.cost_chart(trials, costs, label, facts.metric, facts.axes)
            cards.append(html.card(f"{name.capitalize() if name != 'GMAC' else name} against {facts.metric}", chart, FRONT))
    return cards


NUMERIC = ' class="n"'
FRONT = "Red: the front; no trial is both cheaper and better than one of these."


def _published(facts: Facts, known: list[Trial]) -> list[str]:
    cells: dict[tuple, list[Trial]] = {}
    for trial in known:
        if trial.published is not None:
            cells.setdefault((charts.words(trial, facts.axes), trial.published), []).append(trial)
    if not cells:
        return []
    rows = [(name, statistics.fmean(t.value for t in trials), theirs) for (name, theirs), trials in cells.items()]
    note = "Dot: measured; diamond: the paper's figure; at the side the difference."
    return [html.card("Beside the paper", charts.beside_published(rows, facts.metric), note)]


def _table(facts: Facts) -> str:
    names = [*facts.axes, facts.metric, "minutes", "status", *(["weights"] if any(t.lineage for t in facts.trials) else [])]
    numeric = {axis for axis in facts.axes if any(isinstance(t.settings.get(axis), float) for t in facts.trials)}
    head = '<th class="n">#</th>' + "".join(
        f'<th{NUMERIC if name in numeric | {facts.metric, "minutes"} else ""}><button data-column="{i}" title="sort">'
        f"{escape(name)}</button></th>"
        for i, name in enumerate(names)
    )
    body = f'<div class="scroll"><table id="trials"><thead><tr>{head}</tr></thead><tbody></tbody></table></div>'
    return html.card("Trials", f'{body}<div class="bar"><button id="more" hidden></button></div>', wide=True)


def _data(facts: Facts, axes: list[Axis]) -> dict[str, Any]:
    """What page.js draws: axes, and of each trial its rank r, the values v along the axes and what else the table says."""
    drawn = [_drawn(axis, facts) for axis in axes]
    values = [100 * t.value for t in facts.trials if t.value is not None]
    low, high = min(values), max(values)
    drawn.append({"name": facts.metric, "low": low, "high": high, "ticks": nice_ticks(low, high)})
    rows = [
        {
            "r": place,
            "v": [*(t.settings.get(axis.name) for axis in axes), None if t.value is None else round(100 * t.value, 3)],
            "e": [None if t.minutes is None else round(t.minutes, 1), t.status, *([t.lineage] if t.lineage else [])],
        }
        for place, t in enumerate(facts.trials, start=1)
    ]
    return {"axes": drawn, "rows": rows, "colours": SEQUENCE, "metric": facts.metric, "shown": SHOWN_TRIALS}


def _drawn(axis: Axis, facts: Facts) -> dict[str, Any]:
    values = [t.settings[axis.name] for t in facts.trials if axis.name in t.settings]
    if not axis.numeric:
        return {"name": axis.name, "words": axis.labels}
    low, high = min(values), max(values)
    few = sorted(set(values))
    ticks = few if len(few) <= 8 else [float(f"{v:.3g}") for v in np.geomspace(low, high, 5)] if axis.log else nice_ticks(low, high)
    return {"name": axis.name, "low": low, "high": high, "log": axis.log, "ticks": ticks}


def _same(own: Any, value: Any) -> bool:
    if isinstance(own, bool):
        return str(own).lower() == value
    return own == value
