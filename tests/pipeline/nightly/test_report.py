"""The verdict as text and as a page: columns, what is named, and that the page needs nothing else."""

import json
import re

import pytest

from pipeline.nightly.judge import Judged
from pipeline.nightly.page import page_of, trend_chart
from pipeline.nightly.verdict import Verdict, from_values, markdown, terminal, to_values

FELL = Judged("digits/val/AP", "accuracy", "failed", 0.01, 0.3, 9, 0.25, 0.35, 0.2, None, 0.004, 2, "0.01 is 0.29 below the 0.3")
FINE = Judged("a_rather_long_entry_name_of_someone/assign", "speed", "improved", 0.5, 1.0, 9, 0.7, 1.4)
FRESH = Judged("same/largest_difference", "exact", "passed", 0.0, expected_low=0.0, expected_high=1e-9)
GONE = Judged("digits/val/AP50", "accuracy", "failed", None, 0.5, 9, 0.4, 0.6, why="vanished: training <has> diverged")


def point(day: int, value: float, verdict: str = "passed") -> dict:
    return {"night": f"2026-11-{day:02}", "commit": "c" * 40, "verdict": verdict, "value": value, "run_id": "r"}


@pytest.fixture
def verdict() -> Verdict:
    return Verdict(
        suite="demo", night="2026-11-21", verdict="failed", description="Small & offline", commit="d" * 40, dirty=True,
        machine="A CPU, 2 cores", run_id="abc", minutes=3.21, judged=(FRESH, FINE, FELL, GONE),
        trends={FELL.metric: [point(d, 0.3 if d != 5 else 0.02, "failed" if d == 5 else "passed") for d in range(1, 20)]},
        since={"night": "2026-11-20", "commit": "c" * 40, "run_id": "r"},
        commits=[(f"{i:040}", "2026-11-20", f"Change <{i}>") for i in range(30)],
        trainings=[{"entry": "digits", "seed": 0, "run_id": "t0", "value": 0.01}], notes=["a note"], promoted=[],
    )  # fmt: skip


def test_the_terminal_has_a_hundred_columns_and_names_metric_amount_and_commits(verdict):
    text = terminal(verdict)
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("FAILED  2 of 4 metrics failed, 1 improved")
    assert "FAILED digits/val/AP: 0.01 is 0.29 below the 0.3" in text
    assert "Change <0>" in text
    assert "and 15 more, in the report" in text
    assert "changes of the working tree that no commit holds" in text
    assert "note: a note" in text


def test_a_passed_night_needs_no_commits(verdict):
    passed = from_values(to_values(verdict) | {"verdict": "passed", "judged": [to_values(verdict)["judged"][0]], "dirty": False})
    assert terminal(passed).startswith("PASSED  1 metric\n")
    assert "commits since" not in terminal(passed)


def test_a_verdict_survives_json(verdict):
    back = from_values(json.loads(json.dumps(to_values(verdict), allow_nan=False)))
    assert back.judged == verdict.judged
    assert terminal(back) == terminal(verdict)
    assert markdown(back) == markdown(verdict)


def test_markdown_holds_every_metric_every_commit_and_links(verdict):
    text = markdown(verdict, lambda run_id: f"http://mlflow/{run_id}")
    assert all(j.metric in text for j in verdict.judged)
    assert text.count("Change <") == 30
    assert "[t0](http://mlflow/t0)" in text
    assert "- **digits/val/AP failed**: 0.01 is 0.29 below the 0.3" in text


def test_the_page_loads_nothing_and_shows_the_failed_first(verdict):
    page = page_of(verdict, lambda run_id: f"http://mlflow/{run_id}")
    assert not re.findall(r"""src\s*=|@import|url\(""", page)
    assert "default-src 'none'" in page
    assert 'href="http://mlflow/abc"' in page
    assert "training &lt;has&gt; diverged" in page
    assert "Change &lt;29&gt;" in page
    headings = re.findall(r"<h2>(\S+) <small>", page)
    assert headings == ["digits/val/AP", "digits/val/AP50", "same/largest_difference", FINE.metric]


def test_a_trend_shows_each_night_its_band_and_the_expected_range(verdict):
    chart = trend_chart(verdict, FELL)
    assert chart.count("<circle") == 20
    assert chart.count('fill="#fff"') == 1  # the failed night of the past
    assert "passes by statistics" in chart
    assert "expected range ends at 0.2" in chart
    assert "2026-11-21: 0.01" in chart
    assert trend_chart(verdict, GONE).count("<circle") == 0
    assert trend_chart(verdict, FRESH).count("<circle") == 1
