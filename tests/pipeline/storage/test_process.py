"""A process known by more than its number: ended ones are told from living ones, and nothing is guessed."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.storage.process import has_ended, this_process

TELL = "import json, sys; from pipeline.storage.process import this_process; print(json.dumps(this_process()), flush=True)"
pytestmark = pytest.mark.skipif(this_process() is None, reason="the system does not tell of processes")


@pytest.mark.parametrize("reaped", [False, True])
def test_a_killed_process_has_ended_also_before_its_parent_looks(reaped):
    child = subprocess.Popen([sys.executable, "-c", f"{TELL}; sys.stdin.read()"], stdin=-1, stdout=-1)
    known = json.loads(child.stdout.readline())
    assert known["pid"] == child.pid
    assert not has_ended(known)
    child.kill()
    if reaped:
        child.wait()
    else:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(known)
    child.communicate()


def test_a_number_given_again_is_another_process():
    assert not has_ended(this_process())
    assert has_ended(this_process() | {"start": 1})


@pytest.mark.parametrize("said", [None, {}, {"pid": 1}, "x", {"kernel": None, "pid": 1}, {"kernel": "elsewhere", "pid": 2**22 + 1}])
def test_of_what_is_not_known_nothing_is_said(said):
    assert not has_ended(said)
    assert not has_ended(this_process() | {"pid": "1"})
    assert not has_ended(this_process() | {"pid": -1})
