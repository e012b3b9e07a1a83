"""A bad input: what it is, how it is made, what would read it, and what its refusal has to name.

Nothing here is a file from elsewhere: text is written, binaries are made, at the time of the test, in a folder of its own.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Place(NamedTuple):
    folder: Path  # the case's own, where `make` puts the bad thing
    sound: Path  # sound things that cases share: see `tests.bad_inputs.sound`; nothing is written there

    def of(self, text: str) -> str:
        """A template's text for this place."""
        return text.format(folder=self.folder, sound=self.sound, out=self.folder / "out")


class Case(NamedTuple):
    what: str  # in one line
    make: Callable[[Place], Any]
    load: Callable[[Place], Any]  # what would read it; has to raise a ToodError
    where: str  # the file or the key that the message must name; a template
    says: str  # what is wrong in the message's words; a template
    command: str = ""  # words of `tood` that lead there; a template


Cases = dict[str, Case]


def nothing(place: Place) -> None:
    """For cases that are bad without a file."""


def text(name: str, content: str | bytes) -> Callable[[Place], Any]:
    """Makes a file of this content."""

    def make(place: Place) -> None:
        path = place.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else place_text(place, content).encode())

    return make


def place_text(place: Place, content: str) -> str:
    """`content` with @folder@ and @sound@ filled in: braces are YAML's and JSON's own."""
    return content.replace("@folder@", str(place.folder)).replace("@sound@", str(place.sound))


def dumped(name: str, content: Any) -> Callable[[Place], Any]:
    """Makes a JSON file, with NaN and the like where `content` has them."""
    return text(name, json.dumps(content))
