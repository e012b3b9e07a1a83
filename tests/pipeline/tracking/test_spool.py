"""Journals: whose they are, what survives of them, and where they lie."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from pipeline.tracking.spool import Journal, abandoned, folders, journals

RUN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def uri(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def lines(uri: str, run_id: str = "") -> list:
    found = abandoned(uri, run_id)
    for journal in found:
        journal.release()
    return [line for journal in found for line in journal.lines]


def test_a_living_process_keeps_its_own_and_a_dead_ones_is_taken(uri):
    journal = Journal.create(uri, RUN)
    journal.append([{"key": "a"}, {"key": "b"}])
    journal.append([{"key": "c"}])
    assert abandoned(uri) == []
    journal.release()  # what the system does when a process dies
    (found,) = abandoned(uri, RUN)
    assert [line["key"] for line in found.lines] == ["a", "b", "c"]
    assert abandoned(uri) == []  # of two who look, one has it
    found.remove()
    assert journals(uri) == []


def test_the_oldest_comes_first(uri):
    for name in "abc":
        journal = Journal.create(uri, RUN)
        journal.append([{"key": name}])
        journal.release()
    assert [line["key"] for line in lines(uri)] == ["a", "b", "c"]


def test_runs_and_addresses_are_apart(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for address, run in ((uri, RUN), (uri, "f" * 32), ("http://a:1", RUN), ("http://b:1", RUN)):
        journal = Journal.create(address, run)
        journal.append([{"of": f"{address} {run}"}])
        journal.release()
    assert lines(uri, RUN) == [{"of": f"{uri} {RUN}"}]
    assert len(lines(uri)) == 2
    assert lines("http://a:1") == [{"of": f"http://a:1 {RUN}"}]
    assert len(list((tmp_path / "state/tood/undelivered").iterdir())) == 2


@pytest.mark.parametrize("tail", [b'{"key": "to', b"\xff\xfe", b"[]\n5\n", b"\n\n"])
def test_what_a_kill_or_a_full_disk_left_behind_is_skipped(uri, tail):
    journal = Journal.create(uri, RUN)
    journal.append([{"key": "a"}])
    journal.release()
    with journal.path.open("ab") as file:
        file.write(tail)
    assert {"key": "a"} in lines(uri)


@pytest.mark.parametrize("content", [b"", b"nothing of ours\n", b"[1]\n", b'{"driver": 1}\n'])
def test_a_file_without_a_head_is_removed(uri, content):
    journal = Journal.create(uri, RUN)
    journal.release()
    journal.path.write_bytes(content)
    assert abandoned(uri) == []
    assert journals(uri) == []


def test_half_a_line_spoils_no_other(uri, monkeypatch):
    journal = Journal.create(uri, RUN)
    write = os.write

    def full(descriptor, data):
        write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        journal.append([{"key": "lost"}])
    monkeypatch.undo()
    journal.append([{"key": "kept"}])
    journal.release()
    assert lines(uri) == [{"key": "kept"}]


def test_only_its_owner_reads_it(uri):
    journal = Journal.create(uri, RUN)
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700
    assert json.loads(journal.path.read_text()) == journal.head._asdict() | {"uri": uri}


def test_a_home_that_cannot_be_written_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    journal = Journal.create("http://a:1", RUN)
    assert journal.path.parent == folders("http://a:1")[1]
    assert Path(tmp_path) in journal.path.parents
    journal.release()
    assert len(abandoned("http://a:1")) == 1
