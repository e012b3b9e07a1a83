"""A night's verdict as plain values, and as text: a table for the terminal, Markdown for MLflow and whoever reads files."""

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.markdown import markdown_table
from pipeline.nightly.judge import Judged, number

WIDTH = 100  # columns of the terminal's table
SHOWN_COMMITS = 15
WORDS = {"failed": "FAILED", "improved": "improved", "passed": "passed", "new": "new"}


@dataclass(frozen=True)
class Verdict:
    """All that a night found; what the report shows is in here."""

    suite: str
    night: str  # 2026-11-21
    verdict: str  # passed or failed
    description: str = ""
    commit: str = ""
    dirty: bool = False
    machine: str = ""
    run_id: str = ""
    minutes: float = 0.0
    judged: tuple[Judged, ...] = ()
    trends: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # metric -> earlier nights
    since: Mapping[str, str] = field(default_factory=dict)  # the last passed night: night, commit, run_id
    commits: Sequence[Sequence[str]] = ()  # (id, date, subject), newest first, from that night to this one
    commits_said: str = ""
    trainings: Sequence[Mapping[str, Any]] = ()  # entry, seed, run_id, value
    notes: Sequence[str] = ()
    promoted: Sequence[str] = ()

    @property
    def failed(self) -> list[Judged]:
        return [j for j in self.judged if j.status == "failed"]

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


def to_values(verdict: Verdict) -> dict[str, Any]:
    """Plain values fit for strict JSON."""
    return dataclasses.asdict(verdict) | {"exit_code": verdict.exit_code}


def from_values(values: Mapping[str, Any]) -> Verdict:
    known = {f.name for f in dataclasses.fields(Verdict)}
    judged = tuple(Judged(**row) for row in values.get("judged", ()))
    return Verdict(**{key: value for key, value in values.items() if key in known} | {"judged": judged})


def headline(verdict: Verdict) -> str:
    count, failed = len(verdict.judged), len(verdict.failed)
    said = f"{failed} of {count} metrics failed" if failed else f"{count} metric{'s' if count != 1 else ''}"
    better = sum(j.status == "improved" for j in verdict.judged)
    fresh = sum(j.status == "new" for j in verdict.judged)
    more = [f"{better} improved"] * bool(better) + [f"{fresh} without history"] * bool(fresh)
    return f"{verdict.verdict.upper()}  {', '.join([said, *more])}"


def where(verdict: Verdict) -> str:
    """The night, its code and its machine in a line."""
    code = f"commit {verdict.commit[:10]}" if verdict.commit else "no commit"
    changed = " with uncommitted changes" if verdict.dirty else ""
    return f"suite {verdict.suite}, night {verdict.night}, {code}{changed}, {verdict.machine}, {verdict.minutes:.1f} min"


def terminal(verdict: Verdict) -> str:
    """At most WIDTH columns."""
    lines = [headline(verdict), *_wrapped(where(verdict), ""), ""]
    head = ("metric", "tonight", "passes within", "before", "change", "verdict")
    rows = [_cells(j) for j in verdict.judged]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    widths[0] = min(widths[0], max(12, WIDTH - 10 - sum(widths[1:])))
    for row in [head, *rows]:
        cells = [_cut(row[0], widths[0]).ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:5], widths[1:5], strict=True)] + [row[5]]
        lines.append("  ".join(cells).rstrip())
    if verdict.failed:
        lines.append("")
        for j in verdict.failed:
            lines += _wrapped(f"FAILED {j.metric}: {j.why}", "       ")
    lines += ["", *_commit_lines(verdict)] if verdict.failed else []
    lines += [line for note in verdict.notes for line in _wrapped(f"note: {note}", "      ")]
    lines += [line for said in verdict.promoted for line in _wrapped(f"model: {said}", "       ")]
    return "\n".join(lines)


def markdown(verdict: Verdict, run_link: Callable[[str], str] = lambda run_id: "") -> str:
    """run_link: the address of a run's page; "" for none."""
    lines = [f"# Night {verdict.night} of {verdict.suite}: {verdict.verdict}", "", where(verdict), ""]
    if verdict.description:
        lines += [verdict.description, ""]
    for j in verdict.failed:
        lines.append(f"- **{j.metric} failed**: {j.why}")
    lines += [""] * bool(verdict.failed)
    head = ("metric", "tonight", "noise", "expected range", "passes by statistics", "median before", "nights", "change", "verdict")
    rows = [
        (
            j.metric, text(j.value), text(j.noise), span(j.expected_low, j.expected_high), _statistical(j), text(j.before),
            str(j.nights), change(j), WORDS[j.status] + (f": {j.why}" if j.status == "new" else ""),
        )
        for j in verdict.judged
    ]  # fmt: skip
    lines += [
        markdown_table(head, rows),
        "Noise: of accuracy the standard deviation between seeds, of speed the standard error of the ratio's logarithm.",
    ]
    lines += ["", f"## Commits since {_since(verdict)}", ""]
    lines += [f"- `{id_[:10]}` {date} {subject}" for id_, date, subject in verdict.commits]
    lines += [verdict.commits_said] if verdict.commits_said else []
    for heading, said in (("Notes", verdict.notes), ("Models", verdict.promoted)):
        lines += ["", f"## {heading}", "", *(f"- {line}" for line in said)] if said else []
    if verdict.trainings:
        lines += ["", "## Trainings", ""]
        rows = [(t["entry"], str(t["seed"]), text(t.get("value")), _linked(t["run_id"], run_link)) for t in verdict.trainings]
        lines.append(markdown_table(("entry", "seed", "figure", "MLflow run"), rows))
    return "\n".join(lines).rstrip() + "\n"


def text(value: float | None) -> str:
    return "-" if value is None else number(value)


def span(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "-"
    if high is None:
        return f">= {number(low)}"
    return f"<= {number(high)}" if low is None else f"{number(low)} .. {number(high)}"


def change(judged: Judged) -> str:
    """+0.012, or x 1.03 for speed."""
    if judged.change is None:
        return "-"
    return f"x {judged.change:.2f}" if judged.kind == "speed" else f"{judged.change:+.4f}"


def _cells(j: Judged) -> tuple[str, ...]:
    return j.metric, text(j.value), span(*j.passes), text(j.before), change(j), WORDS[j.status]


def _statistical(j: Judged) -> str:
    return span(j.low, None) if j.kind == "accuracy" else span(None, j.high)


def _since(verdict: Verdict) -> str:
    if not verdict.since:
        return "the last passed night (there is none)"
    return f"the last passed night {verdict.since['night']}" + (f" ({c[:10]})" if (c := verdict.since.get("commit")) else "")


def _commit_lines(verdict: Verdict) -> list[str]:
    lines = [f"commits since {_since(verdict)}:"]
    lines += [_cut(f"  {id_[:10]} {date} {subject}", WIDTH) for id_, date, subject in verdict.commits[:SHOWN_COMMITS]]
    if len(verdict.commits) > SHOWN_COMMITS:
        lines.append(f"  and {len(verdict.commits) - SHOWN_COMMITS} more, in the report")
    if verdict.commits_said:
        lines += [f"  {line}" for line in textwrap.wrap(verdict.commits_said, WIDTH - 2)]
    elif not verdict.commits:
        lines.append("  none")
    if verdict.dirty:
        lines.append("  and changes of the working tree that no commit holds")
    return lines


def _linked(run_id: str, run_link: Callable[[str], str]) -> str:
    address = run_link(run_id)
    return f"[{run_id}]({address})" if address else run_id


def _cut(words: str, width: int) -> str:
    return words if len(words) <= width else words[: width - 3] + "..."


def _wrapped(words: str, indent: str) -> list[str]:
    return textwrap.wrap(words, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
