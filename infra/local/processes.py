"""Start a service in a session of its own, know it again later, and end it with everything that came of it.

A service outlives the command that starts it. It is remembered by pid and start time: a pid alone may be somebody else's by now.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_SECONDS = 300  # a busy machine with two cores is slow to start things
SAME_START = 2.0  # s; the system's clock may be set between two looks at a start time


class StartError(RuntimeError):
    """A service that ended or stayed silent instead of coming up."""


@dataclass(frozen=True)
class Service:
    name: str  # of the log, and in messages
    command: list[str]
    ready: Callable[[], None]  # raises as long as the service does not answer
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # holds secrets
    grace: float = 10  # s between the polite signal and the one that cannot be refused; 0: at once


@dataclass(frozen=True)
class Remembered:
    """A process of an earlier command."""

    name: str
    pid: int
    started: float  # s since the epoch

    def find(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) < SAME_START and alive(process):
                return process
        return None


def remember(name: str, pid: int) -> Remembered:
    return Remembered(name, pid, psutil.Process(pid).create_time())


def launch(
    service: Service,
    logs: Path,
    started: Callable[[int], None] = lambda pid: None,
    needs: Callable[[], list[str]] = lambda: [],
) -> subprocess.Popen:
    """Start a service and wait until it is ready. Its output goes to `logs`/NAME.log.

    `started` hears its pid at once; `needs` names what it depends on and has ended meanwhile. Raises StartError with the end of
    the log; nothing of the service is left then.
    """
    log = logs / f"{service.name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            service.command,
            cwd=logs,
            env={**os.environ, **service.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        started(process.pid)
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if gone := needs():
                raise StartError(f"{', '.join(gone)} ended while {service.name} came up; see {logs / gone[0]}.log")
            try:
                service.ready()
                return process
            except Exception:  # not yet: refused, half up, an empty reply
                time.sleep(0.2)
        how = "does not answer" if process.poll() is None else f"ended with code {process.returncode}"
        tail = log.read_text(errors="replace")[-2000:].strip()
        raise StartError(f"{service.name} {how}; the end of {log}:\n{tail}")
    except BaseException:
        with contextlib.suppress(psutil.NoSuchProcess):
            end([psutil.Process(process.pid)], service.grace)
        process.wait()
        raise


def end(processes: Iterable[psutil.Process], grace: float, polite: signal.Signals = signal.SIGTERM) -> None:
    """End processes and all that came of them: asked politely first, by force after `grace` seconds."""
    asked = list(processes)
    everyone = family(asked)
    if grace:
        for process in asked:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(polite)
        _wait(asked, grace)
    for process in everyone | family(process for process in everyone if process.is_running()):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # psutil refuses where the pid is another process by now
    _wait(everyone, 10)


def alive(process: psutil.Process) -> bool:
    """Is it running? A zombie, which some containers never bury, is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(processes: Iterable[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)


def family(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Running processes, their descendants, and the members of sessions that they lead, some of whom lost their parents."""
    found: set[psutil.Process] = set()
    led = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {process, *process.children(recursive=True)}
            led |= {process.pid} if _session(process.pid) == process.pid else set()
    found |= {other for other in psutil.process_iter() if _session(other.pid) in led}
    return {process for process in found if process.pid != os.getpid()}


def marked(variable: str, value: str) -> set[psutil.Process]:
    """Processes that were started with this variable: those of a stack whose parents are gone."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(variable) == value and process.pid != os.getpid():
                found.add(process)
    return found


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None
