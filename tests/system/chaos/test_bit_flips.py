import json

import pytest

from tests.system.chaos import bit_flips

SHORT = ["--pulls", "0", "--resumes", "0", "--without", "pull"]  # a registry takes seconds to make


def test_flipped_bits_are_refused(capsys):
    assert bit_flips.main([*SHORT, "--count", "100"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert {row["what"]: row["tried"] for row in rows} == {k: v for k, v in bit_flips.SHARES.items() if k != "pull"}


def test_a_loader_that_looks_away_is_told(capsys, monkeypatch):
    monkeypatch.setattr(bit_flips, "load_model", lambda path: None)
    assert bit_flips.main([*SHORT, "--count", "10"]) == 1
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    assert rows["load_model"]["survived"] == 0
    assert rows["load_model"]["remark"].endswith("was loaded")
    assert rows["fetch"]["survived"] == rows["fetch"]["tried"]


@pytest.mark.system
def test_flipped_bits_are_refused_by_the_commands(capsys):
    assert bit_flips.main(["--count", "10", "--pulls", "3", "--resumes", "2"]) == 0
