import json

import pytest

from pipeline.storage import lock, s3
from tests.system.chaos import store_faults
from tests.system.chaos.summary import Row


@pytest.fixture
def restored(monkeypatch):
    """What the program sets for its process ends with the test."""
    for name in ("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "")
    for name in ("READ_SECONDS", "ATTEMPTS"):
        monkeypatch.setattr(s3, name, getattr(s3, name))
    for name, value in lock.hold.__wrapped__.__kwdefaults__.items():
        monkeypatch.setitem(lock.hold.__wrapped__.__kwdefaults__, name, value)


@pytest.mark.short_run
def test_a_store_that_fails_leaves_everything_whole(restored, capsys):
    assert store_faults.main(["--count", "2", "--labs", "1"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["requests"] > 20
    assert sum(row["survived"] for row in line["rows"]) == 2


def test_rows_of_the_same_harm_become_one():
    rows = [Row("a", 1, 1), Row("b", 1, 1), Row("a", 1, 0, "broke"), Row("a", 2, 1, "too")]
    assert store_faults.together(rows) == [Row("a", 4, 2, "broke"), Row("b", 1, 1)]
