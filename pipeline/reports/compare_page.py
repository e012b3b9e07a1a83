"""The road of `tood compare`: names to detections, figures and verdicts, and where they are kept."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.reports import html_page as html
from pipeline.reports.compare import Comparison, as_values, compare, letter, notable_classes, table
from pipeline.reports.compare_charts import class_forest, forest
from pipeline.reports.subjects import Place, read_subjects
from pipeline.statistics import simultaneous
from pipeline.tracking.access import connect
from pipeline.tracking.log_to import log_to
from tood.atomic import write_file
from tood.errors import DataError
from tood.image_matches import NAMES


def compare_named(
    names: Sequence[str],
    values: Mapping[str, Any],
    tracking: str,
    models: Path,
    *,
    annotations: Path | None,
    resamples: int,
    level: float,
    page: Path | None,
    run_id: str | None,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], str]:
    """The comparison as JSON values and as a table. values: an experiment's; models: folder for pulled ones."""
    if any(not Path(name).expanduser().exists() for name in names):
        connect(tracking)
    with log_to(
        tracking,
        values,
        run_id,
        kind="compare",
        name=" ".join(names)[:200],
        identity=[list(names), str(annotations), level, resamples],
    ) as run:
        place = Place(tracking, models, values, annotations)
        truth, subjects = read_subjects(list(names), place, say)
        found = compare(subjects, truth, resamples=resamples, level=level)
        plain, text = as_values(found), table(found)
        content = page_of(found)
        if page:
            try:
                page.parent.mkdir(parents=True, exist_ok=True)
                write_file(page, content.encode())
            except OSError as error:
                raise DataError(f"--html: {page} cannot be written ({error.strerror or error}); choose another file") from None
        if run:
            run.metrics(metrics_of(found), step=0)
            run.document(plain, "compare/compare.json")
            run.text(text, "compare/compare.txt")
            run.text(content, "compare/compare.html")
            if not run_id:
                run.description(f"```\n{text}```")
    return plain, text


def metrics_of(found: Comparison) -> dict[str, float]:
    """Differences as MLflow's flat metrics; of several subjects each under its letter."""
    flat = {}
    for place, other in enumerate(found.others, start=1):
        end = f"_{letter(place)}" if len(found.others) > 1 else ""
        for name in NAMES:
            d = other.differences[name]
            flat |= {f"compare/{name}{end}": d.value, f"compare/{name}_low{end}": d.low, f"compare/{name}_high{end}": d.high}
    return {key: value for key, value in flat.items() if np.isfinite(value)}


def page_of(found: Comparison) -> str:
    """The comparison as one HTML file."""
    title = " and ".join(letter(i) for i in range(len(found.subjects)))
    named = [
        [letter(i), name, str(len(runs)), *(_points(found.measured[i][key]) for key in ("AP", "AP50", "AP75"))]
        for i, (name, runs) in enumerate(zip(found.subjects, found.runs, strict=True))
    ]
    head = ["", "detector", "runs", "AP", "AP50", "AP75"]
    cards = [html.card("", f"<p><b>{escape(other.verdict)}</b></p>", wide=True, extra="verdict") for other in found.others]
    cards.append(html.card("What is compared", html.rows(head, named, [False, False, True, True, True, True]), wide=True))
    level = simultaneous(found.level, len(found.others))
    for place, other in enumerate(found.others, start=1):
        pair = f"{letter(place)} minus A"
        known = {key: d for key, d in other.differences.items() if np.isfinite(d.low)}
        if known:
            note = f"Points with {100 * level:.4g} % intervals; an interval that crosses the line is no difference."
            cards.append(html.card(f"{pair}: figures", forest(known), note))
        order = notable_classes(other, level)
        if len(order) > 1:
            note = f"The surest of {len(order)} classes; {(1 - level) * len(order):.1f} of them would miss the line by chance."
            classes = {found.names[k]: other.per_class[k] for k in order}
            cards.append(html.card(f"{pair}: AP of classes", class_forest(classes), note))
    about = (
        f"{found.annotations}: {found.images:,} images, drawn anew {found.resamples:,} times, the same for all. "
        + ("Seeds count where a configuration has two and more. " if any(len(runs) > 1 for runs in found.runs) else "")
        + (
            f"{len(found.others)} comparisons hold together at {100 * found.level:g} % (Bonferroni)."
            if len(found.others) > 1
            else ""
        )
    )
    top = [f"<h1>{escape(title)}</h1>", f'<p class="muted">{escape(about)}</p>']
    return html.page(f"Comparison of {title}", [*top, f'<div class="grid">{"".join(cards)}</div>'])


def _points(values: np.ndarray) -> str:
    if np.isnan(values).any():
        return "-"
    return f"{100 * values.mean():.2f}" + (f" ± {100 * values.std(ddof=1):.2f}" if len(values) > 1 else "")
