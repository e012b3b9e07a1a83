"""The parts of `make stack` that need no servers: knowing a process again, ending what came of it, profile and ports."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys

import psutil
import pytest

from infra.local.processes import Remembered, Service, StartError, alive, end, family, launch, marked, remember
from infra.local.profile import forget_profile, write_profile
from infra.local.services import free_ports, port_like, write_private
from infra.local.stack import Stack, down

ADDRESSES = {"dashboard": "http://127.0.0.1:8265", "mlflow": "http://127.0.0.1:5000", "s3": "http://127.0.0.1:8333"}
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def service(tmp_path):
    """A process with a child, ready once it has told the child's pid."""

    def ready():
        assert (tmp_path / "two.log").read_text().strip()

    running = launch(Service("two", [sys.executable, "-c", PARENT], ready, {"STACK_TEST": str(tmp_path)}), tmp_path)
    child = psutil.Process(int((tmp_path / "two.log").read_text()))
    yield psutil.Process(running.pid), child
    running.kill()
    running.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        child.kill()


def test_what_came_of_a_process_ends_with_it(service):
    parent, child = service
    assert family([parent]) == {parent, child}
    end([parent], grace=5)
    assert not alive(parent)
    assert not alive(child)


def test_an_orphan_is_found_by_its_mark(service, tmp_path):
    parent, child = service
    parent.kill()
    parent.wait()  # psutil's wait reaps it, so that the fixture's finds nothing to do
    assert marked("STACK_TEST", str(tmp_path)) == {child}
    assert marked("STACK_TEST", "another") == set()


def test_a_pid_that_is_somebody_elses_by_now_is_not_found():
    me = remember("me", os.getpid())
    assert me.find() == psutil.Process()
    assert Remembered("me", me.pid, me.started - 60).find() is None
    done = subprocess.Popen([sys.executable, "-c", ""])
    was = remember("done", done.pid)
    done.wait()
    assert was.find() is None


def test_a_service_that_ends_is_told_with_the_end_of_its_log(tmp_path):
    def never():
        raise OSError

    words = [sys.executable, "-c", "print('the disk is full'); raise SystemExit(3)"]
    with pytest.raises(StartError, match=r"(?s)broken ended with code 3.*the disk is full"):
        launch(Service("broken", words, never), tmp_path)
    heard = []
    with pytest.raises(StartError, match="first ended while second came up"):
        launch(Service("second", [sys.executable, "-c", PARENT], never, grace=0), tmp_path, heard.append, lambda: ["first"])
    assert not psutil.pid_exists(heard[0])


def test_down_ends_what_is_remembered_and_nothing_else(tmp_path, service):
    parent, child = service
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        stack = Stack(tmp_path)
        reused = Remembered("mlflow", bystander.pid, psutil.Process(bystander.pid).create_time() - 60)
        stack.state.processes = [remember("s3", parent.pid), reused]
        stack._write()
        down(tmp_path, tmp_path / "cluster.yaml", wipe=False)
        assert not alive(parent)
        assert not alive(child)
        assert bystander.poll() is None
        assert not stack.file.exists()
    finally:
        bystander.send_signal(signal.SIGKILL)
        bystander.wait()


def test_one_command_at_a_time(tmp_path):
    with Stack(tmp_path).alone(), pytest.raises(StartError, match="another command"), Stack(tmp_path).alone():
        pass


def test_secrets_are_made_once_and_are_nobody_elses(tmp_path):
    keys = Stack(tmp_path)._secrets()
    assert len(set(keys.values())) == len(keys)
    assert Stack(tmp_path)._secrets() == keys
    for file in (tmp_path / "secrets").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    write_private(tmp_path / "again", "a")
    write_private(tmp_path / "again", "b")
    assert (tmp_path / "again").read_text() == "b"


def test_the_profile_is_one_that_tood_reads(tmp_path):
    from pipeline.jobs.profiles import find_cluster  # brings torch, which nothing else here needs

    keys = Stack(tmp_path)._secrets()
    file = tmp_path / "profiles" / "cluster.yaml"
    file.parent.mkdir()
    assert write_profile(file, tmp_path, ADDRESSES, "detectors") == file
    cluster = find_cluster("local", str(file))
    assert cluster.token() == keys["ray_token"]
    assert "tracking.uri=http://127.0.0.1:5000" in cluster.job_settings()
    assert not any(value in file.read_text() for value in keys.values())
    forget_profile(file, tmp_path / "other")
    assert file.exists()
    forget_profile(file, tmp_path)
    assert not file.exists()
    file.write_text("clusters: {mine: {jobs: http://ray.example:8265}}\n")
    assert write_profile(file, tmp_path, ADDRESSES, "detectors") == tmp_path / "cluster.yaml"
    assert "mine" in file.read_text()


def test_a_port_in_use_is_left_to_who_has_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert port_like(taken.getsockname()[1]) != taken.getsockname()[1]
    (free,) = free_ports(1)
    assert port_like(free) == free
