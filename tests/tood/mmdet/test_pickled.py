"""Pickles read as data: what they hold comes out, what they would do does not happen."""

import io
import os
import pickle
import pickletools
from collections import OrderedDict

import pytest

from tood.errors import CheckpointError
from tood.mmdet.pickled import Call, Name, read_pickle


def read(data: bytes):
    return read_pickle(io.BytesIO(data), "file")[0]


class Harmful:
    """Its pickle runs a command by REDUCE."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Odd:
    """Its pickle is a NEWOBJ, items of all kinds and a BUILD."""

    def __reduce_ex__(self, protocol):
        return object.__new__, (Odd,), {"state": 1}, iter([1, 2]), iter([("a", 1)])


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_as_they_are(protocol):
    value = {
        "numbers": [0, -1, 255, 65_536, 2**70, 1.5, True, False, None],
        "texts": ("a", "ä" * 300, b"bytes", b"b" * 300),
        "nested": {1: [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}]},
        "ordered": OrderedDict(b=1, a=2),
    }
    found = read(pickle.dumps(value, protocol))
    if protocol < 3:  # bytes are a call there, of what makes them from a text
        assert isinstance(found["texts"][2], Call)
        value["texts"], found["texts"] = value["texts"][:2], found["texts"][:2]
    assert found == value
    assert type(found["ordered"]) is dict
    assert list(found["ordered"]) == ["b", "a"]


def test_shared_and_recursive_values_stay_so():
    row = [1]
    row.append(row)
    found = read(pickle.dumps([row, row]))
    assert found[0] is found[1]
    assert found[0][1] is found[0]


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(protocol, tmp_path):
    trace = tmp_path / "ran"
    found = read(pickle.dumps({"x": Harmful(f"touch {trace}"), "y": Odd()}, protocol))
    assert not trace.exists()
    assert isinstance(found["x"], Call)
    assert found["x"].path.endswith(".system")
    assert found["x"].arguments == (f"touch {trace}",)
    assert isinstance(found["y"], Call)


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch {}'\ntR.",  # GLOBAL, REDUCE
        b"(S'touch {}'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch {}'\no.",  # OBJ
        b'cbuiltins\neval\n(S\'open("{}", "w")\'\ntR.',
        b"cos\nsystem\n}S'__setstate__'\ncos\nsystem\nsbS'touch {}'\nb.",  # BUILD twice: the first would set what the second calls
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x07touch {}\x85R.",  # STACK_GLOBAL
    ],
)
def test_programs_written_by_hand_do_nothing(program, tmp_path, monkeypatch):
    trace = tmp_path / "ran"
    monkeypatch.setattr(os, "system", lambda command: trace.touch())
    program = program.replace(b"{}", b"x" if b"\x8c\x07" in program else str(trace).encode())
    assert isinstance(read(program), Call | Name)
    assert not trace.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04",
        b"not a pickle",
        b"R.",
        b"(.",
        b"0.",
        b"h\x05.",
        b"]K\x01K\x02s.",  # an item of a list
        b"K\x01K\x02a.",  # appended to a number
        b"\x82\x01.",  # EXT1: the registry of the running program
        b"\x97.",  # NEXT_BUFFER
        b"\x8d" + (2**62).to_bytes(8, "little") + b"x.",  # a text longer than the file
    ],
)
def test_damaged_ones_are_errors(data):
    with pytest.raises(CheckpointError, match="file: damaged or foreign"):
        read(data)


def test_keys_that_are_more_than_values_are_never_hashed():
    deep = pickle.MARK + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000  # hashing it would end the process
    found = read(pickle.EMPTY_DICT + deep + pickle.POP_MARK + b")" + pickle.TUPLE1 * 100_000 + b"K\x01s.")
    assert [type(key) for key in found] == [Call]


def test_an_endless_program_ends(monkeypatch):
    monkeypatch.setattr("tood.mmdet.pickled.MAX_OPERATIONS", 10)
    with pytest.raises(CheckpointError, match="more than 10 operations"):
        read(pickle.dumps(list(range(20))))


def test_every_operation_of_pickles_is_known_or_refused():
    data = {pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER}
    from tood.mmdet.pickled import _CONSTANTS, _EMPTY, _VALUES, _WITHOUT_EFFECT, _Machine

    known = _VALUES | set(_CONSTANTS) | set(_EMPTY) | _WITHOUT_EFFECT
    missing = {o.name for o in pickletools.opcodes if o.name not in known and not hasattr(_Machine, f"_{o.name.lower()}")}
    assert missing == {o.name for o in pickletools.opcodes if o.code.encode("latin-1") in data}
