"""A paper's figures beside what was measured: which belong to a trial, the two tables, and where there is nothing to say."""

import csv
import io

import pytest

from pipeline.config import COSTS, SweepConfig, experiment_of
from pipeline.experiment_files import load_values
from pipeline.published import Row, as_csv, figures_at, markdown, measured, not_run, target
from pipeline.trial_table import TrialTable
from tests.tiny import write_experiment
from tood.config import build

SWEEP = build(
    SweepConfig,
    {
        "space": {"cell": {"choices": {"few": {"m": 9}, "many": {"m": 13}}}, "train.seed": [0, 1]},
        "published": [{"at": {"cell": "few"}, "AP": 42.0, "gmac": 201.13}, {"at": {"m": 13, "train.seed": 0}, "AP": 42.5}],
        "out_of_scope": [{"row": "PISA", "why": "not here, because, so", "AP": 37.3}],
    },
)


def test_figures_belong_to_the_trials_that_their_cell_names():
    assert figures_at(SWEEP, {"m": 9, "train.seed": 1}) == {"AP": 42.0, "gmac": 201.13}
    assert figures_at(SWEEP, {"m": 13, "train.seed": 0}) == {"AP": 42.5}
    assert figures_at(SWEEP, {"m": 13, "train.seed": 1}) == {}
    assert target(SWEEP, {"m": 13, "train.seed": 0}) == pytest.approx(0.425)
    assert target(SWEEP, {"m": 13, "train.seed": 1}) is None


def test_measured_figures_are_as_the_paper_prints_them(tmp_path):
    experiment = experiment_of(load_values(str(write_experiment(tmp_path))))
    known = measured(experiment, {"val/AP": 0.4, "val/loss": 3.0}, ["AP", "AP50", "fps", "params_m"])
    assert known["AP"] == pytest.approx(40)
    assert (known["AP50"], known["fps"]) == (None, None)
    assert 11 < known["params_m"] < 13
    assert measured(experiment, {}, COSTS)["gmac"] > measured(experiment, {}, COSTS)["head_gmac"] > 0


ROWS = [
    Row({"cell": "few"}, {"AP": 41.84, "gmac": 200.9}, {"AP": 42.0, "gmac": 201.13}),
    Row({"cell": "a,b", "seed": 0}, {"AP": None}, {"AP": 42.5}, "failed"),
    Row({"cell": "other"}, {}, {}),
    *not_run(SWEEP),
]


def test_the_markdown_table_holds_measured_published_and_difference():
    lines = markdown(ROWS).splitlines()
    cells = [[text.strip() for text in line.strip("|").split("|")] for line in lines[:1] + lines[2:6]]
    assert cells[0] == ["cell", "seed", "row", "AP", "gmac", ""]
    assert cells[1] == ["few", "", "", "41.84 / 42 (-0.16)", "200.9 / 201.13 (-0.23)", ""]
    assert cells[2] == ["a,b", "0", "", "- / 42.5", "", "failed"]
    assert cells[3] == ["other", "", "", "", "", ""]
    assert cells[4] == ["", "", "PISA", "- / 37.3", "", "not here, because, so"]


def test_the_csv_table_can_be_read_back():
    rows = list(csv.DictReader(io.StringIO(as_csv(ROWS))))
    assert [row["AP published"] for row in rows] == ["42", "42.5", "", "37.3"]
    assert float(rows[0]["AP difference"]) == pytest.approx(-0.16)
    assert rows[1]["cell"] == "a,b"
    assert rows[1]["AP difference"] == rows[1]["AP measured"] == ""
    assert rows[3]["note"] == "not here, because, so"


class Trial:
    def __init__(self, name: str, values: dict, result: dict | None = None):
        self.trial_id, self.config, self.last_result = name, {"trial": values}, result or {}


def test_the_live_table_shows_the_papers_figure_where_there_is_one():
    said = []
    table = TrialTable(
        "val/AP", said.append, describe=str, epochs=lambda t: t["e"], target=lambda t: 0.425 if t["e"] == 12 else None
    )
    table.on_trial_complete(0, [], Trial("a", {"e": 12}, {"epoch": 12, "best": 0.4, "val/AP": 0.39}))
    table.on_trial_start(0, [], Trial("b", {"e": 18}))
    head, first, second = table.render().splitlines()
    assert head.split()[-2:] == ["published", "difference"]
    assert first.split()[-4:] == ["0.3900", "0.4000", "0.425", "-0.0250"]
    assert "12/12" in first
    assert second.split()[-4:] == ["-", "-", "-", "-"]
    assert "0/18" in second
    plain = TrialTable("val/AP", said.append, describe=str, epochs=lambda t: 3)
    plain.on_trial_start(0, [], Trial("a", {"e": 12}))
    assert "published" not in plain.render()
