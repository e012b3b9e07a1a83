"""Attacks: each would run something, or write somewhere, if what reads it did as it is told.

Whatever is run leaves `Ground.trap`; whatever is written must lie in `Ground.inside`. An attack may be refused or come to
nothing; that is for the corpus to say where it is an error.
"""

import builtins
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tood.errors import ToodError


class Ground(NamedTuple):
    inside: Path  # where the attacked may write
    sound: Path
    trap: Path  # outside; nothing may ever make it

    @property
    def command(self) -> str:
        return f"touch {self.trap}"


class Attack(NamedTuple):
    what: str  # in one line
    attempt: Callable[[Ground], Any]


class System:
    """Its pickle runs a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Evaluated(System):
    """Its pickle evaluates Python."""

    def __reduce__(self):
        return builtins.eval, (f"__import__('os').system({self.command!r})",)


class Built(System):
    """Its pickle hands the command to a method by BUILD."""

    def __reduce__(self):
        return Opening, (), {"command": self.command}


class Opening:
    def __setstate__(self, state: dict) -> None:
        os.system(state["command"])


def springs(payload: object, trap: Path) -> bool:
    """Does the payload work, where somebody unpickles it? It has to, or nothing is proved."""
    pickle.loads(pickle.dumps(payload))
    worked = trap.exists()
    trap.unlink(missing_ok=True)
    return worked


PAYLOADS = (System, Evaluated, Built)


def put(ground: Ground, name: str, content: bytes) -> Path:
    path = ground.inside / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def data_section(ground: Ground) -> dict:
    root = str(ground.sound / "data")
    return {"root": root} | {s: {"annotations": f"{s}.json", "images": s} for s in ("train", "val")}


def every(doors: tuple[Callable[[], Any], ...]) -> None:
    """Try each; the last refusal is the attack's own."""
    refusal = None
    for door in doors:
        try:
            door()
        except ToodError as error:
            refusal = error
    if refusal:
        raise refusal


def bare_pickle(ground: Ground) -> bytes:
    return pickle.dumps(System(ground.command))


def imported(content: Callable[[Ground], bytes], name: str = "x.pth") -> Callable[[Ground], Any]:
    def attempt(ground: Ground) -> None:
        from pipeline.exchange import import_model

        path = put(ground, name, content(ground))
        import_model(path, ground.inside / "out", config=None, settings=[], classes=None, register=None)

    return attempt
