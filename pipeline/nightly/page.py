"""A night on one self-contained HTML page: the verdict, what was measured, each metric over the nights, the commits between."""

from collections.abc import Callable
from html import escape

from pipeline.nightly.judge import Judged
from pipeline.nightly.verdict import Verdict, change, headline, span, text
from pipeline.reports import html_page as html
from pipeline.reports.svg import ACCENT, MUTED, WARM, Chart, number

GREEN, RED = "#1d7a46", "#b3261e"
COLOURS = {"failed": RED, "improved": GREEN, "passed": "#1d2733", "new": MUTED}
BAND, EXPECTED = "#dcebf7", "#8a97a4"
WIDTH, HEIGHT = 540, 210
KEY = (
    "Large: tonight. Blue: nights that passed. Hollow red: nights that failed, which later ones are not judged by. Shaded: what "
    "passes by statistics, about the dotted median. Dashed: the suite's expected range. Point at a night for its figure and commit."
)
PLOT_WORDS = {
    "accuracy": "higher is better",
    "speed": "of the reference operation's time; lower is better",
    "exact": "0 is right",
}


def page_of(verdict: Verdict, run_link: Callable[[str], str] = lambda run_id: "") -> str:
    """The whole page. run_link: the address of an MLflow run's page; "" for none."""
    title = f"{verdict.suite}, night {verdict.night}"
    content = [f"<h1>{escape(title)}: {_coloured(verdict.verdict)}</h1>"]
    if verdict.description:
        content.append(f'<p class="muted">{escape(verdict.description)}</p>')
    content.append(html.facts(_facts(verdict)))
    cards = [_verdict_card(verdict), _table_card(verdict)]
    cards.append(_commits_card(verdict))
    cards.append(html.card("Over the nights", "", KEY, wide=True))
    ordered = sorted(verdict.judged, key=lambda j: j.status != "failed")  # what failed is looked at first
    cards += [_trend_card(verdict, judged) for judged in ordered]
    cards += [_list_card("Models", verdict.promoted), _list_card("Notes", verdict.notes), _runs_card(verdict, run_link)]
    content.append(f'<div class="grid">{"".join(cards)}</div>')
    return html.page(f"{title}: {verdict.verdict}", content)


def trend_chart(verdict: Verdict, judged: Judged) -> str:
    """The metric over the nights: passed ones filled, failed ones hollow; the shaded band is what passes by statistics."""
    points = [*verdict.trends.get(judged.metric, ())]
    shown = [(point["night"], point["value"], point["verdict"], point["commit"]) for point in points]
    if judged.value is not None:
        shown.append((verdict.night, judged.value, judged.status, verdict.commit))
    chart = Chart(WIDTH, HEIGHT, left=58, bottom=34)
    ends = [end for end in (judged.low, judged.high, judged.expected_low, judged.expected_high) if end is not None]
    values = [value for _, value, *_ in shown] or ends or [0.0]
    low, high = min([*values, *ends]), max([*values, *ends])
    y = chart.y_scale(low, high)
    x = chart.x_scale(-0.5, max(len(shown) - 0.5, 0.5))
    if judged.before is not None:
        worst = judged.low if judged.kind == "accuracy" else judged.high
        top, bottom = (y.high, worst) if judged.kind == "accuracy" else (worst, y.low)
        chart.rect(chart.left, y(top), chart.right - chart.left, y(bottom) - y(top), BAND, title="passes by statistics")
    chart.axes(None, y)
    _night_labels(chart, x, [night for night, *_ in shown])
    for end in (judged.expected_low, judged.expected_high):
        if end is not None:
            line = [(chart.left, y(end)), (chart.right, y(end))]
            chart.line(line, EXPECTED, width=1.4, dash="6 4", title=f"expected range ends at {number(end)}")
    if judged.before is not None:
        chart.line([(chart.left, y(judged.before)), (chart.right, y(judged.before))], ACCENT, width=1.2, dash="2 3", title="median")
    chart.line([(x(i), y(value)) for i, (_, value, *_) in enumerate(shown)], "#b9c4ce", width=1.4)
    for i, (night, value, status, commit) in enumerate(shown):
        tonight = judged.value is not None and i == len(shown) - 1
        colour = COLOURS.get(status, MUTED) if tonight else RED if status == "failed" else ACCENT
        title = f"{night}: {number(value)}" + (f", commit {commit[:10]}" if commit else "") + f", {status}"
        chart.dot(x(i), y(value), colour, radius=5.5 if tonight else 3.8, hollow=status == "failed" and not tonight, title=title)
    return chart.svg(f"{judged.metric} over {len(shown)} nights; tonight {text(judged.value)}, {judged.status}")


def _facts(verdict: Verdict) -> list[tuple[str, str]]:
    failed, count = len(verdict.failed), len(verdict.judged)
    code = verdict.commit[:10] if verdict.commit else "no commit"
    return [
        (f"{failed} of {count}", "metrics failed") if failed else (f"{count}", "metrics passed"),
        (code, "commit, with uncommitted changes" if verdict.dirty else "commit"),
        (f"{verdict.minutes:.1f} min", f"on {verdict.machine}"),
        (verdict.since.get("night", "none"), "last night that passed before"),
    ]


def _verdict_card(verdict: Verdict) -> str:
    if not verdict.failed:
        words = headline(verdict).partition("  ")[2]
        said = f"<p><b>{_coloured(verdict.verdict.capitalize())}.</b> {escape(words)}; nothing got worse by more than noise.</p>"
        return html.card("", said, wide=True, extra="verdict")
    rows = "".join(f"<p><b>{_coloured('failed', j.metric)}</b> {escape(j.why)}</p>" for j in verdict.failed)
    return f'<section class="card wide verdict" style="border-left-color:{RED}">{rows}</section>'


def _table_card(verdict: Verdict) -> str:
    head = ("metric", "tonight", "expected range", "passes by statistics", "median before", "nights", "change", "verdict")
    numeric = (False, True, True, True, True, True, True, False)
    rows = [
        (
            j.metric, text(j.value), span(j.expected_low, j.expected_high),
            span(j.low, None) if j.kind == "accuracy" else span(None, j.high),
            text(j.before), str(j.nights or "-"), change(j), j.status,
        )
        for j in verdict.judged
    ]  # fmt: skip
    body = html.rows(head, rows, numeric)
    for status in ("failed", "improved"):
        body = body.replace(f"<td>{status}</td>", f"<td><b>{_coloured(status)}</b></td>")
    note = (
        "Speed is the ratio to a fixed operation timed by turns with it in the same process. Nights: earlier passed nights of the "
        "same configuration on the same kind of machine."
    )
    return html.card("What was measured", body, note, wide=True)


def _trend_card(verdict: Verdict, judged: Judged) -> str:
    chart = trend_chart(verdict, judged)
    told = PLOT_WORDS[judged.kind] + (f" (seeds: {judged.count})" if judged.kind == "accuracy" and judged.count > 1 else "")
    head = f"<h2>{escape(judged.metric)} <small>{_coloured(judged.status)}</small></h2>"
    return f'<section class="card">{head}<p class="note">{escape(told)}</p>{chart}</section>'


def _commits_card(verdict: Verdict) -> str:
    since = f"night {verdict.since['night']}" if verdict.since else "the beginning"
    note = verdict.commits_said or ("no commit lies between" if not verdict.commits else "")
    if verdict.dirty:
        note = "; ".join(filter(None, [note, "the working tree has changes that no commit holds"]))
    rows = [(id_[:10], date, subject) for id_, date, subject in verdict.commits]
    body = html.rows(("commit", "date", "subject"), rows, (False, False, False)) if rows else ""
    return html.card(f"Commits since {since}, the last that passed" if verdict.since else "Commits", body, note, wide=True)


def _runs_card(verdict: Verdict, run_link: Callable[[str], str]) -> str:
    runs = [("this night", "", "", verdict.run_id)]
    runs += [(t["entry"], str(t["seed"]), text(t.get("value")), t["run_id"]) for t in verdict.trainings]
    cells = []
    for entry, seed, value, run_id in runs:
        link = run_link(run_id)
        named = f'<a href="{escape(link)}">{escape(run_id)}</a>' if link else escape(run_id)
        cells.append(f"<tr><td>{escape(entry)}</td><td>{escape(seed)}</td><td>{escape(value)}</td><td>{named}</td></tr>")
    head = "<tr><th>run</th><th>seed</th><th>figure</th><th>MLflow run</th></tr>"
    body = f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(cells)}</tbody></table></div>'
    return html.card("Runs", body, wide=True)


def _list_card(heading: str, said) -> str:
    return html.card(heading, "".join(f"<p>{escape(line)}</p>" for line in said), wide=True) if said else ""


def _night_labels(chart: Chart, x, nights: list[str]) -> None:
    """As many dates as there is room for, the last one always."""
    step = -(-len(nights) // 6) or 1
    for i in range(len(nights) - 1, -1, -step):
        chart.text(x(i), chart.bottom + 17, nights[i][5:], anchor="middle", colour=MUTED, size=11)


def _coloured(status: str, words: str = "") -> str:
    colour = {**COLOURS, "passed": GREEN}.get(status.lower(), WARM)
    return f'<span style="color:{colour}">{escape(words or status)}</span>'
