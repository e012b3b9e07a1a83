"""Attacks that would run something or write somewhere: 0 executions, 0 writes outside, and no error but ours."""

import contextlib
from pathlib import Path

import pytest

from tests.bad_inputs.hostile import ATTACKS
from tests.bad_inputs.hostile.ground import PAYLOADS, Ground, springs
from tood.errors import ToodError


@pytest.fixture
def ground(tmp_path, sound, monkeypatch) -> Ground:
    for folder in ("inside", "outside", "home", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # ~ is no way out either
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path / "work")
    return Ground(tmp_path / "inside", sound, tmp_path / "outside/trap")


def everything(folder: Path) -> dict[str, object]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_is_run_and_nothing_is_written_outside(name, ground):
    before = everything(ground.sound)
    with contextlib.suppress(ToodError):
        ATTACKS[name].attempt(ground)
    left = {path.name for path in ground.trap.parent.iterdir()}
    assert left <= {"secret.png"}, left  # which an attack puts there for others to be led to
    assert not list((ground.inside.parent / "home").rglob("*"))
    assert not list((ground.inside.parent / "work").rglob("*"))
    assert everything(ground.sound) == before
    assert not Path("/tmp/trap").exists()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_traps_would_spring(payload, ground):
    assert springs(payload(ground.command), ground.trap)
