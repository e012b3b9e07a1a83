"""Uploads in the background: one at a time and in order, a precaution gives way to what is newer, a failure is heard."""

import fcntl
import os
import shutil
import tempfile
import threading
import time

import pytest

from pipeline.scratch import LOCK, PREFIX, YOUNG, scratch_folder
from pipeline.uploads import Uploads


@pytest.fixture
def uploads():
    made = Uploads()
    yield made
    made.close()


def test_what_waits_gives_way_to_what_is_newer_and_what_must_happen_happens_in_order(uploads):
    done, dropped, gate = [], [], threading.Event()
    uploads.put(lambda: gate.wait(10) and done.append("epoch 1"))
    uploads.offer(lambda: done.append("step 5"), lambda: dropped.append("step 5"))
    uploads.offer(lambda: done.append("step 6"), lambda: dropped.append("step 6"))
    second = uploads.put(lambda: done.append("epoch 2"))
    uploads.offer(lambda: done.append("step 9"), lambda: dropped.append("step 9"))
    assert not second.done()
    assert done == []  # and nobody was made to wait
    gate.set()
    uploads.wait()
    assert done == ["epoch 1", "epoch 2", "step 9"]
    assert dropped == ["step 5", "step 6"]
    assert second.result(0) is None


def test_after_a_failure_nothing_is_begun_and_everybody_hears_of_it(uploads):
    gate, begun = threading.Event(), []

    def fail() -> None:
        gate.wait(10)
        raise ValueError("no room")

    failed, waiting = uploads.put(fail), uploads.put(lambda: begun.append(1))
    gate.set()
    for future in (failed, waiting, uploads.put(lambda: begun.append(2))):
        with pytest.raises(ValueError, match="no room"):
            future.result(10)
    with pytest.raises(ValueError, match="no room"):
        uploads.wait()
    assert begun == []


def test_a_dead_process_folder_is_swept_and_a_living_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("dead", "alive", "young", "foreign")
    dead, alive, young, foreign = (tmp_path / f"{PREFIX}{name}" for name in names)
    for folder in (dead, alive, young):
        folder.mkdir()
        (folder / LOCK).touch()
        (folder / "checkpoint").mkdir()
        old = time.time() - (YOUNG + 1 if folder != young else 0)
        os.utime(folder / LOCK, (old, old))
    foreign.mkdir()
    with (alive / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with scratch_folder() as mine:
            assert sorted(tmp_path.iterdir()) == sorted([alive, young, foreign, mine])
    assert sorted(tmp_path.iterdir()) == sorted([alive, young, foreign])
    shutil.rmtree(tmp_path)
