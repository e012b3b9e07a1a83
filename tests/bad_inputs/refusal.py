"""Is a message one that a person can act on? It says what, where and what to do, and nothing else."""

import re

from tests.bad_inputs.case import Case, Place
from tood.errors import ToodError

LONGEST, LONGEST_LINE = 3000, 700  # characters of a message that lists problems, of one of its lines
_DO = (
    *(
        "add",
        "ask",
        "check",
        "choose",
        "convert",
        "copy",
        "correct",
        "create",
        "delete",
        "divide",
        "export",
        "free",
        "get",
        "give",
        "grant",
    ),
    *("install", "keep", "leave", "look", "lower", "make", "mend", "move", "name", "pack", "pick", "pull", "put", "quote", "raise"),
    *("remove", "rename", "restore", "save", "say", "see", "send", "set", "shorten", "start", "take", "try", "turn", "unpack"),
    *("sort", "update", "use", "wait", "write"),
)
# An order, where a clause begins; or what would have been accepted, which leaves no doubt about what to write instead.
ADVICE = re.compile(
    rf"(?:[;:,(]|\bor|\band)\s+(?:{'|'.join(_DO)})\b|did you mean '|; (?:valid|it has): |is not one of \S|is not between \S+ and|"
    r"expected \S|\bmust be \S"
)
# Of Python, not of the input.
INTERNAL = re.compile(
    r"Traceback|<class |object at 0x|NoneType|site-packages|\bself\b|positional argument|keyword argument|unhashable|"
    r"\bsubscriptable|\bAttributeError|\bTypeError|\bKeyError|\bIndexError|codec can't|has no attribute|PosixPath"
)


def check_message(error: BaseException, case: Case, place: Place) -> None:
    assert isinstance(error, ToodError), f"a {type(error).__name__} and no ToodError: {error}"
    message = str(error)
    lines = message.split("\n")
    assert message.isprintable() or message.replace("\n", "").isprintable(), f"not printable: {message!r}"
    assert all(line.startswith("  ") for line in lines[1:-1]), f"more than one line and no list: {message!r}"
    assert len(message) <= LONGEST, f"{len(message)} characters"
    assert max(map(len, lines)) <= LONGEST_LINE, f"a line of {max(map(len, lines))} characters"
    assert place.of(case.where) in message, f"does not name {place.of(case.where)!r}: {message!r}"
    assert place.of(case.says) in message, f"does not say {place.of(case.says)!r}: {message!r}"
    assert ADVICE.search(message), f"does not say what to do: {message!r}"
    assert not INTERNAL.search(message), f"speaks of Python: {message!r}"
