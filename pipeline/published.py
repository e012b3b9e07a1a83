"""A paper's figures beside what a sweep measured, cell by cell, and the rows of its table that are not run.

Figures are as papers print them: AP in percent, parameters in millions, cost in GMAC.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.config import COSTS, FIGURES, METRICS, Experiment, SweepConfig
from pipeline.markdown import markdown_table
from pipeline.space import CELL, cell_of
from tood.cost import Cost, count_cost

Figures = dict[str, float]


class Row(NamedTuple):
    """One row of a paper's table."""

    settings: Mapping[str, Any]  # what the cell's trial set; {"row": name} for one that is not run
    measured: Mapping[str, float | None]  # None: not known here
    published: Figures
    note: str = ""  # the trial's status where it is not finished; why a row is not run


def figures_at(sweep: SweepConfig, trial: Mapping[str, Any]) -> Figures:
    """What the paper says of a trial's cell; empty where it says nothing."""
    found: Figures = {}
    told = {**trial, CELL: cell_of(sweep.space, trial)}
    for cell in sweep.published:
        if all(key in told and told[key] == value for key, value in cell["at"].items()):
            found |= {key: value for key, value in cell.items() if key != "at"}
    return found


def target(sweep: SweepConfig, trial: Mapping[str, Any]) -> float | None:
    """The paper's figure for the sweep's own metric in a trial's cell, on COCO's scale of 0 to 1."""
    figure = figures_at(sweep, trial).get(sweep.metric.removeprefix("val/"))
    return None if figure is None else figure / 100


def measured(experiment: Experiment, metrics: Mapping[str, float], names: Sequence[str]) -> dict[str, float | None]:
    """What a trial is known to have of these figures. metrics: of its best epoch, as {"val/AP": 0.42}."""
    cost = _as_papers_say(count_cost(experiment.model)) if set(names) & set(COSTS) else {}
    accuracy = {metric.removeprefix("val/"): 100 * metrics[metric] for metric in METRICS if metric in metrics}
    return {name: (cost | accuracy).get(name) for name in names}


def not_run(sweep: SweepConfig) -> list[Row]:
    words = ("row", "why")
    return [
        Row({"row": row["row"]}, {}, {key: value for key, value in row.items() if key not in words}, row["why"])
        for row in sweep.out_of_scope
    ]


def markdown(rows: Sequence[Row]) -> str:
    """A cell is `measured / published (difference)`."""
    settings, figures = _columns(rows)
    lines = []
    for row in rows:
        texts = [_triple(row.measured.get(name), row.published.get(name)) for name in figures]
        lines.append([*(_text(row.settings.get(key)) for key in settings), *texts, row.note])
    table = markdown_table([*settings, *figures, ""], lines)
    return f"{table}\nmeasured / published (difference); AP and AR in percent, - is not known here\n"


def as_csv(rows: Sequence[Row]) -> str:
    """Three columns a figure: measured, published, difference; empty where there is none."""
    settings, figures = _columns(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = ("measured", "published", "difference")
    writer.writerow([*settings, *(f"{name} {end}" for name in figures for end in ends), "note"])
    for row in rows:
        values: list[Any] = [_text(row.settings.get(key)) for key in settings]
        for name in figures:
            ours, theirs = row.measured.get(name), row.published.get(name)
            both = ours is not None and theirs is not None
            values += ["" if v is None else f"{v:.6g}" for v in (ours, theirs, ours - theirs if both else None)]
        writer.writerow([*values, row.note])
    return out.getvalue()


def _as_papers_say(cost: Cost) -> Figures:
    values = (cost.trainable_params / 1e6, cost.head_params / 1e6, cost.gmac, cost.head_gmac)
    return dict(zip(COSTS, values, strict=True))


def _columns(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    settings = list(dict.fromkeys(key for row in rows for key in row.settings))
    known = {name for row in rows for name in row.published}
    return settings, [name for name in FIGURES if name in known]


def _triple(ours: float | None, theirs: float | None) -> str:
    if theirs is None:
        return "" if ours is None else _short(ours)
    return f"{'-' if ours is None else _short(ours)} / {_short(theirs)}" + (
        "" if ours is None else f" ({_short(ours - theirs, '+')})"
    )


def _short(value: float, sign: str = "") -> str:
    """Two decimals, without zeros at the end beyond the first: 42.5, 205.03, 30261."""
    text = f"{value:{sign}.3f}" if abs(value) < 1 else f"{value:{sign}.2f}"
    return text.rstrip("0").rstrip(".") if float(value).is_integer() else text.removesuffix("0")


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
