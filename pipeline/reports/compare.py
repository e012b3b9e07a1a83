"""`tood compare`: COCO figures of detectors side by side, and whether their difference is one.

The first subject is what the others are compared with. Figures are COCO's, on its scale of 0 to 1; words and tables say points,
hundredths of it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.reports.subjects import Subject
from pipeline.statistics import (
    LEVEL,
    RESAMPLES,
    Difference,
    Sample,
    between_seeds,
    difference,
    draws,
    permutation_p,
    simultaneous,
)
from tood.evaluation import Truth
from tood.image_matches import NAMES, ImageMatches, image_matches, side_by_side, weighted_figures

EXCHANGES = 200  # drawings of the test that exchanges detectors image by image
SHOWN_CLASSES = 10


class Figures(NamedTuple):
    """Of every run of a subject, as measured [R] and on resampled images [R,B]."""

    summary: dict[str, Sample]
    per_class: tuple[Sample, ...]  # [K] AP


class Other(NamedTuple):
    """A subject beside the first."""

    differences: dict[str, Difference]  # of each of the twelve figures
    per_class: tuple[Difference, ...]  # [K] of AP
    exchange_p: float | None  # of AP, where both are one run
    same: bool  # both are seeds of one configuration
    verdict: str


class Comparison(NamedTuple):
    annotations: str
    images: int
    names: tuple[str, ...]  # [K]
    subjects: tuple[str, ...]
    runs: tuple[tuple[str, ...], ...]  # names of each subject's runs
    measured: tuple[dict[str, np.ndarray], ...]  # of each subject: figure -> [R]
    others: tuple[Other, ...]  # of the second subject and on
    level: float  # at which all intervals of a figure hold together
    resamples: int


def compare(
    subjects: Sequence[Subject], truth: Truth, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Comparison:
    """Compare two subjects or more on one data set; seed: of the drawings."""
    images = len(truth.image_ids)
    weights = draws(images, resamples, seed)
    matches = [[image_matches(truth, member.detections) for member in subject.members] for subject in subjects]
    figures = [_figures(of_subject, weights) for of_subject in matches]
    each = simultaneous(level, len(subjects) - 1)
    seeds = _by_configuration(subjects)
    between = {name: between_seeds(_joined([f.summary[name] for f in figures], seeds)) for name in NAMES}
    of_classes = [between_seeds(_joined([f.per_class[k] for f in figures], seeds)) for k in range(len(truth.names))]
    others = []
    for place in range(1, len(subjects)):
        found = {
            name: difference(figures[0].summary[name], figures[place].summary[name], between[name], images, each) for name in NAMES
        }
        per_class = tuple(
            difference(figures[0].per_class[k], figures[place].per_class[k], of_class, images, each)
            for k, of_class in enumerate(of_classes)
        )
        same = subjects[0].configuration is not None and subjects[0].configuration == subjects[place].configuration
        exchanged = None
        if len(matches[0]) == len(matches[place]) == 1:
            exchanged = _exchange_p(matches[0][0], matches[place][0], found["AP"].value, seed)
        said = verdict(letter(0), letter(place), found["AP"], same)
        others.append(Other(found, per_class, exchanged, same, said))
    return Comparison(
        truth.path.name,
        images,
        truth.names,
        tuple(subject.name for subject in subjects),
        tuple(tuple(member.name for member in subject.members) for subject in subjects),
        tuple({name: f.summary[name].values for name in NAMES} for f in figures),
        tuple(others),
        level,
        resamples,
    )


def verdict(first: str, second: str, found: Difference, same: bool) -> str:
    """One line: what the difference second - first is, in points of AP. same: both are seeds of one configuration."""
    if np.isnan(found.low):
        return "not comparable: AP is not defined on these data"
    value, low, high = 100 * found.value, 100 * found.low, 100 * found.high
    sided = [-value, -high, -low] if value < 0 else [value, low, high]
    bounds = f"[{sided[1]:+.1f}, {sided[2]:+.1f}]"
    if same:
        return f"no difference: {first} and {second} are seeds of one configuration; {value:+.1f} AP is what a seed does here"
    if low <= 0 <= high:
        unseen = 100 * (found.high - found.low) / 2
        seeds = "" if found.seeds_known else "; one seed each"
        return f"no difference: {value:+.1f} AP [{low:+.1f}, {high:+.1f}] (less than about {unseen:.1f} cannot be told here{seeds})"
    better = second if value > 0 else first
    of_what = "" if found.seeds_known else " (over images; one seed each, so how much of it is luck of the seed is not known)"
    return f"{better} is better: {sided[0]:+.1f} AP {bounds}{of_what}"


def letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"#{place + 1}"


def as_values(found: Comparison) -> dict[str, Any]:
    """Everything as plain JSON values; what is not defined is null."""
    return {
        "annotations": found.annotations,
        "images": found.images,
        "resamples": found.resamples,
        "level": found.level,
        "comparisons": len(found.others),
        "subjects": [
            {"name": name, "runs": list(runs), "figures": {key: [_plain(v) for v in column] for key, column in figures.items()}}
            for name, runs, figures in zip(found.subjects, found.runs, found.measured, strict=True)
        ],
        "against_first": [
            {
                "name": name,
                "verdict": other.verdict,
                "seeds_known": other.differences["AP"].seeds_known,
                "exchange_p": other.exchange_p,
                "differences": {key: _interval(d) for key, d in other.differences.items()},
                "per_class": {key: _interval(d) for key, d in zip(found.names, other.per_class, strict=True)},
            }
            for name, other in zip(found.subjects[1:], found.others, strict=True)
        ],
    }


def table(found: Comparison) -> str:
    """For a person, in 100 columns."""
    lines = []
    for place, (name, runs) in enumerate(zip(found.subjects, found.runs, strict=True)):
        count = f"{len(runs)} seeds" if len(runs) > 1 else "1 run"
        lines.append(f"{letter(place)}  {_cut(name, 82):<82}  {count:>9}")
    lines += [
        f"on {_cut(found.annotations, 50)}: {found.images} images, drawn anew {found.resamples:,} times; points are hundredths",
        "",
    ]
    for place, other in enumerate(found.others, start=1):
        lines += [*_against(found, place, other), ""]
    if len(found.others) > 1:
        each = 100 * simultaneous(found.level, len(found.others))
        lines.append(
            f"{len(found.others)} comparisons with A: each interval is at {each:.2f} %, so all hold together at "
            f"{100 * found.level:.0f} % (Bonferroni)"
        )
    return "\n".join(lines).rstrip() + "\n"


def notable_classes(other: Other, level: float) -> list[int]:
    """Places of the classes that differ most, the surest first; only these could be more than chance."""
    known = [k for k, d in enumerate(other.per_class) if np.isfinite(d.p)]
    return sorted(known, key=lambda k: (other.per_class[k].p, -abs(other.per_class[k].value)))


def _against(found: Comparison, place: int, other: Other) -> list[str]:
    name, level = letter(place), simultaneous(found.level, len(found.others))
    interval = f"{100 * level:.4g} % interval"
    lines = [f"{f'{name} - A':<12}{'A':>18}{name:>18}{'difference':>13}  {interval:<20}{'p':>8}"]
    for key in NAMES:
        d, columns = other.differences[key], (found.measured[0][key], found.measured[place][key])
        if not np.isnan(d.value):
            lines.append(f"{key:<12}{_mean(columns[0]):>18}{_mean(columns[1]):>18}{_bounds(d)}")
    order = notable_classes(other, level)
    sure = sum(other.per_class[k].p < (1 - level) / max(1, len(order)) for k in order)
    if len(order) > 1:
        lines.append("")
        shown = f"classes, the surest {SHOWN_CLASSES} of {len(order)}" if len(order) > SHOWN_CLASSES else "classes"
        lines.append(f"{shown:<48}{'difference':>13}")
        lines += [f"  {_cut(found.names[k], 44):<46}{_bounds(other.per_class[k])}" for k in order[:SHOWN_CLASSES]]
        by_chance = (1 - level) * len(order)
        lines.append(
            f"of {len(order)} classes {by_chance:.1f} would lie outside their interval by chance; {sure} stand after Bonferroni"
        )
    if other.exchange_p is not None:
        lines.append(f"exchanging A and {name} image by image at random differs as much in AP with p = {other.exchange_p:.3f}")
    return [*lines, "", other.verdict]


def _figures(matches: Sequence[ImageMatches], weights: np.ndarray) -> Figures:
    once = [weighted_figures(m, np.ones((1, m.images))) for m in matches]
    often = [weighted_figures(m, weights) for m in matches]
    summary = {
        name: Sample(np.array([f.summary[name][0] for f in once]), np.stack([f.summary[name] for f in often])) for name in NAMES
    }
    classes = range(len(matches[0].names))
    per_class = (Sample(np.array([f.per_class[k, 0] for f in once]), np.stack([f.per_class[k] for f in often])) for k in classes)
    return Figures(summary, tuple(per_class))


def _by_configuration(subjects: Sequence[Subject]) -> list[list[int]]:
    """Places of the subjects that are seeds of one configuration, together: they tell what a seed does."""
    found: dict[str, list[int]] = {}
    for place, subject in enumerate(subjects):
        found.setdefault(subject.configuration or f"unknown {place}", []).append(place)
    return list(found.values())


def _joined(samples: Sequence[Sample], together: Sequence[Sequence[int]]) -> list[Sample]:
    return [
        Sample(np.concatenate([samples[i].values for i in places]), np.concatenate([samples[i].resampled for i in places]))
        for places in together
    ]


def _exchange_p(a: ImageMatches, b: ImageMatches, observed: float, seed: int) -> float:
    """p of the difference if it did not matter which detector's answer an image has."""
    second = np.random.default_rng(seed).random((EXCHANGES, a.images)) < 0.5
    both = side_by_side(a, b)
    ours, theirs = (
        weighted_figures(both, np.concatenate(halves, axis=1)).summary["AP"] for halves in ((~second, second), (second, ~second))
    )
    return permutation_p(theirs - ours, observed)


def _interval(found: Difference) -> dict[str, Any]:
    keys = {"value": found.value, "low": found.low, "high": found.high, "standard_error": found.error, "p": found.p}
    return {key: _plain(value) for key, value in keys.items()}


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: np.ndarray) -> str:
    points = 100 * values
    return f"{points.mean():.2f}" + (f" ± {points.std(ddof=1):.2f}" if len(points) > 1 else "")


def _bounds(found: Difference) -> str:
    if np.isnan(found.low):
        return f"{100 * found.value:>+13.2f}" if np.isfinite(found.value) else f"{'-':>13}"
    interval = f"[{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    return f"{100 * found.value:>+13.2f}  {interval:<20}{_p(found.p):>8}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else "..." + text[3 - width :]
