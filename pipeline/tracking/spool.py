"""Files that hold what MLflow has not yet taken, so that it outlives the process: appended to, locked, picked up, removed.

A journal belongs to the process that has its lock, which the system takes back when that process dies, however it dies.
Whoever then gets the lock sends what is in it. They lie beside an SQLite file in `undelivered/`, for a server in
$XDG_STATE_HOME/tood/undelivered (by default ~/.local/state/tood/undelivered), or, where no such folder can be made, in the
system's folder for temporary files. A journal whose content has arrived is removed, so the folder is empty in good times.
"""

import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.tracking.access import sqlite_file

FOLDER = "undelivered"
Line = dict[str, Any]  # plain JSON values


class Head(NamedTuple):
    """A journal's first line: whose it is."""

    run_id: str
    driver: str  # token of the process that opened the run and will end it; "" for one that only logs
    began: float  # seconds since 1970


class Journal:
    """One such file, held by this process."""

    def __init__(self, path: Path, descriptor: int, head: Head, lines: Sequence[Line] = ()):
        self.path, self.head, self.lines = path, head, list(lines)  # lines: what was in it when it was opened
        self._descriptor = descriptor
        self._torn = False

    @classmethod
    def create(cls, uri: str, run_id: str, driver: str = "") -> "Journal":
        """A new one. OSError where no folder can be written to."""
        refused: OSError | None = None
        for folder in folders(uri):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if folder.stat().st_uid != os.getuid():
                    raise PermissionError(f"{folder} belongs to another user")
                path = folder / f"{_prefix(uri, run_id)}{uuid.uuid4().hex[:12]}.jsonl"
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            except OSError as error:
                refused = error
                continue
            with suppress(OSError):  # a file system without locks: then it keeps what it holds, but nobody picks it up
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            head = Head(run_id, driver, time.time())
            made = cls(path, descriptor, head)
            made.append([head._asdict() | {"uri": uri}])
            return made
        raise refused or OSError("no folder for journals")

    def append(self, lines: Sequence[Line]) -> None:
        """Write lines at the end: at once in the system's hands, so that they survive this process. OSError."""
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        data = ("\n" + text if self._torn else text).encode()
        self._torn = True  # a full disk may take half a line, which readers skip
        while data:
            data = data[os.write(self._descriptor, data) :]
        self._torn = False

    def release(self) -> None:
        """Leave it to whoever wants it."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """Everything in it has arrived."""
        self.path.unlink(missing_ok=True)
        self.release()


def abandoned(uri: str, run_id: str = "") -> list[Journal]:
    """The journals that dead processes of this machine left for an address, oldest first, now this process's to send.

    run_id: of that run alone. The caller releases or removes each.
    """
    found = []
    for path in journals(uri, run_id):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
        except OSError:
            continue  # gone meanwhile, or another person's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head, lines = _read(descriptor)
            status = os.fstat(descriptor)
            if status.st_nlink == 0 or status.st_uid != os.getuid():  # removed by another before we had the lock; not ours
                raise OSError
        except OSError:  # its process lives
            os.close(descriptor)
            continue
        if head is None:  # killed before its first line was written
            Journal(path, descriptor, Head("", "", 0.0)).remove()
        else:
            found.append(Journal(path, descriptor, head, lines))
    return sorted(found, key=lambda journal: journal.head.began)


def journals(uri: str, run_id: str = "") -> list[Path]:
    """Files of journals for an address, those of live processes too."""
    return sorted(path for folder in folders(uri) for path in folder.glob(f"{_prefix(uri, run_id or '*')}*.jsonl"))


def folders(uri: str) -> list[Path]:
    """Where journals for an address lie: the first that can be written to."""
    if uri.startswith("sqlite"):
        return [sqlite_file(uri).parent / FOLDER]
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return [Path(state) / "tood" / FOLDER, Path(tempfile.gettempdir()) / f"tood-{os.getuid()}-{FOLDER}"]


def _prefix(uri: str, run_id: str) -> str:
    """Beginning of the names of journals of an address and a run; names have no secrets and no odd characters."""
    run = run_id if run_id == "*" else re.sub(r"\W", "_", run_id)
    return f"{hashlib.sha256(uri.encode()).hexdigest()[:8]}-{run}-"


def _read(descriptor: int) -> tuple[Head | None, list[Line]]:
    data = b""
    while chunk := os.pread(descriptor, 1 << 20, len(data)):
        data += chunk
    values = []
    for text in data.splitlines():
        with suppress(ValueError):  # the last line of a process that was killed, or of a full disk
            values.append(json.loads(text))
    if not values or not isinstance(values[0], dict) or not isinstance(values[0].get("run_id"), str):
        return None, []
    first = values[0]
    return Head(first["run_id"], str(first.get("driver", "")), float(first.get("began", 0))), values[1:]
