import json

import pytest

from tests.system.chaos.summary import Row, begin, conclude


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([Row("a", 3, 3)], 0),
        ([Row("a", 3, 3), Row("b", 3, 2, "one was lost")], 1),
        ([Row("a", 0, 0)], 1),  # nothing was tried
        ([], 1),
    ],
)
def test_what_did_not_survive_is_an_exit_code(rows, code, capsys):
    assert conclude("name", rows, seed=7, began=begin(), per_second=2.5) == code
    *shown, line = capsys.readouterr().out.splitlines()
    values = json.loads(line)
    assert (values["chaos"], values["seed"], values["survived"], values["per_second"]) == ("name", 7, code == 0, 2.5)
    assert len(shown) == len(rows) + 1
    assert [row["what"] for row in values["rows"]] == [row.what for row in rows]
