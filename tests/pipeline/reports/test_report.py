"""The report of a sweep: what is gathered, which charts there are, that the page needs nothing else and holds 2,000 trials."""

import re
import time

import pytest

from pipeline.reports import charts
from pipeline.reports.bins import axis_of, means, told_apart
from pipeline.reports.report import baseline_of, page_of, report_sweep
from pipeline.reports.svg import Scale, marks, nice_ticks, shade
from pipeline.reports.sweep_facts import Facts, Trial, axes_of, gather
from tests.pipeline.synthetic_sweep import write_sweep
from tood.errors import ConfigError

TRIALS = 2000


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("synthetic"), TRIALS)


@pytest.fixture(scope="module")
def page(sweep, tmp_path_factory):
    """The page's text, what it was made of, and the seconds that it took."""
    uri, name = sweep
    started = time.monotonic()
    file, facts = report_sweep(name, uri, tmp_path_factory.mktemp("page") / "report.html")
    return file.read_text(), facts, time.monotonic() - started


def test_two_thousand_trials_take_less_than_a_minute_and_ten_megabytes(page):
    text, facts, seconds = page
    assert len(facts.trials) == TRIALS
    assert seconds < 60
    assert len(text) < 10e6


def test_the_page_loads_nothing_and_keeps_its_words_apart_from_its_code(page):
    text, *_ = page
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org)""", text)
    assert "default-src 'none'" in text
    assert text.count("</script>") == 2


def test_what_is_gathered_is_what_the_trials_were(page, sweep):
    _, facts, _ = page
    assert facts.axes == ["alpha", "beta", "m", "head", "lr", "layers"]
    assert sum(t.value is None for t in facts.trials) == TRIALS // 50
    values = [t.value for t in facts.trials if t.value is not None]
    assert values == sorted(values, reverse=True)
    assert len(facts.curves) == 24
    assert [e for e, _ in facts.curves[facts.trials[0].run_id]] == list(range(1, 13))
    assert facts.trials[0].cost.gmac > 0


def test_every_kind_of_chart_is_there(page):
    text, *_ = page
    for heading in ("alpha × beta", ">m<", "Learning curves", "GMAC against", "Time against", "All trials", "Trials"):
        assert heading in text
    assert "the median trial" in text or "own settings" in text


def test_the_page_is_an_artifact_of_the_sweeps_run(page, sweep):
    from mlflow import MlflowClient

    _, facts, _ = page
    files = {file.path for file in MlflowClient(sweep[0]).list_artifacts(facts.summary.run_id)}
    assert "report.html" in files


def test_the_heat_map_holds_the_means(page):
    _, facts, _ = page
    known = [t for t in facts.trials if t.value is not None]
    alpha, beta = (axis_of(name, known) for name in ("alpha", "beta"))
    cells = means([alpha, beta], known)
    assert sum(cell.count for cell in cells.values()) == len(known)
    mine = [t.value for t in known if (t.settings["alpha"], t.settings["beta"]) == (1.0, 6.0)]
    cell = cells[alpha.place(1.0), beta.place(6.0)]
    assert (cell.count, cell.mean) == (len(mine), pytest.approx(sum(mine) / len(mine)))
    picture = charts.heat_map(alpha, beta, known, "val/AP")
    assert picture.count("<rect") == 30 + 24  # cells and the key
    assert f"{100 * cell.mean:.1f}" in picture
    assert told_apart(beta, known) > told_apart(axis_of("head", known), known) > 0


def made(settings: dict, value: float | None, seed: str = "0", published: float | None = None, place: int = 0) -> Trial:
    return Trial(f"{place:032x}", f"t{place}", "finished", seed, settings, value, 3.0 + place, published, None)


def facts_of(trials: list[Trial], axes: list[str]) -> Facts:
    return Facts("small", "", "val/AP", axes, trials, {}, None, None)


def test_a_sweep_without_alpha_has_a_page_too():
    trials = [made({"head": h, "lr": lr}, 0.4 - 0.1 * i, place=i) for i, (h, lr) in enumerate([("a", 0.1), ("b", 0.1), ("a", 0.2)])]
    text = page_of(facts_of(trials, ["head", "lr"]), None)
    assert "alpha" not in text
    assert "× lr" in text or "lr ×" in text
    one_axis = page_of(facts_of([made({"m": 9.0}, 0.4), made({"m": 13.0}, 0.5, place=1)], ["m"]), None)
    assert "×" not in one_axis
    assert ">m<" in one_axis


def test_one_trial_and_none_with_a_figure_make_a_page():
    assert "Trials" in page_of(facts_of([made({}, 0.4)], []), None)
    assert "No trial has a figure yet" in page_of(facts_of([made({"m": 9.0}, None)], ["m"]), None)
    same = [made({"m": 9.0}, 0.0, place=i) for i in range(3)]
    assert "Trials" in page_of(facts_of(same, []), None)


def test_names_cannot_break_out_of_the_page():
    evil = "</script><img src=x onerror=alert(1)>"
    text = page_of(facts_of([made({"head": evil}, 0.4), made({"head": "b"}, 0.3, place=1)], ["head"]), None)
    assert "<img" not in text
    assert text.count("</script>") == 2


def test_seeds_are_ranked_by_their_means():
    trials = [
        made({"m": m}, v, seed, place=i)
        for i, (m, v, seed) in enumerate([(9.0, 0.50, "0"), (13.0, 0.49, "0"), (13.0, 0.48, "1"), (9.0, 0.40, "1")])
    ]
    text = page_of(facts_of(trials, ["m"]), None)
    table = text[text.index("Means over seeds") :]
    assert table.index("m 13") < table.index("m 9")
    assert "cannot be told apart" in table


def test_published_figures_stand_beside_measured_ones():
    trials = [made({"m": 13.0}, 0.42, published=0.425), made({"m": 9.0}, 0.41, place=1)]
    text = page_of(facts_of(trials, ["m"]), None)
    assert "Beside the paper" in text
    assert "published 42.5" in text
    assert "Beside the paper" not in page_of(facts_of(trials[1:], ["m"]), None)


def test_the_front_holds_what_is_neither_dearer_nor_worse_than_another():
    trials = [made({"m": float(i)}, v, place=i) for i, v in enumerate([0.3, 0.2, 0.4])]
    picture = charts.cost_chart(trials, [1.0, 2.0, 3.0], "GMAC", "val/AP", ["m"])
    assert "2 trials lie on the front" in picture


def test_echoes_of_other_parameters_are_no_axes():
    params = [{"head": h, "head_aligner": f"{h}!", "lr": str(i), "seed": str(i), "epochs": "12"} for i, h in enumerate("abab")]
    assert axes_of(params, None) == ["head", "lr"]
    assert axes_of([{"cell": c, "depth": d} for c, d in (("x", "50"), ("y", "50"), ("z", "101"))], None) == ["cell"]


def test_the_baseline_is_the_one_asked_for():
    trials = [made({"m": float(i)}, 0.5 - 0.1 * i, place=i) for i in range(3)]
    assert baseline_of(facts_of(trials, ["m"]), trials, "t2")[0] == trials[2]
    assert baseline_of(facts_of(trials, ["m"]), trials, "")[1] == "the median trial"
    with pytest.raises(ConfigError, match="--baseline"):
        baseline_of(facts_of(trials, ["m"]), trials, "nobody")


def test_an_unknown_sweep_is_said_to_be_unknown(sweep):
    with pytest.raises(ConfigError, match="no trial of such a sweep"):
        gather("nothing-like-it", sweep[0])


def test_many_values_are_put_into_steps_and_few_are_not():
    many = [made({"lr": 0.001 * 1.1**i}, 0.1, place=i) for i in range(40)]
    axis = axis_of("lr", many)
    assert (axis.binned, axis.log, len(axis.labels)) == (True, True, 8)
    assert (axis.place(0.001), axis.place(0.001 * 1.1**39)) == (0, 7)
    assert not axis_of("lr", many[:5]).binned


def test_scales_ticks_and_shades():
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(36.4, 44.2) == [38, 40, 42, 44]
    assert nice_ticks(3, 3) == [3]
    assert Scale(1, 100, 0, 200, log=True)(10) == pytest.approx(100)
    assert [words for _, words in marks([11.2251, 11.2252])] == ["11.2251", "11.2252"]
    assert (shade(0), shade(1), shade(2)) == ("#eef5d0", "#0c2c84", "#0c2c84")
