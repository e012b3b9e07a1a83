"""A pickle read as data. A pickle is a program for a machine that calls whatever it names; this machine calls nothing.

What a pickle names becomes a `Name`, what it would call a `Call`; numbers, texts, lists, tuples, sets and dictionaries are
themselves. Nothing is imported, and no method of what is read is looked up. Who reads decides which calls mean something.
"""

import pickletools
from typing import Any, BinaryIO

from tood.errors import CheckpointError

MAX_OPERATIONS = 5_000_000  # of one pickle; a checkpoint has some ten thousand

_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_WITHOUT_EFFECT = {"PROTO", "FRAME"}


class Name:
    """Something of a module that the pickle refers to: "collections.OrderedDict"."""

    def __init__(self, path: str):
        self.path = path


class Call:
    """What the pickle would have called, and with what. The state that it would have set is dropped."""

    def __init__(self, function: Any, arguments: Any):
        self.function, self.arguments = function, arguments

    @property
    def path(self) -> str:
        return self.function.path if isinstance(self.function, Name) else "something"


class Reference:
    """Something that lies outside of the pickle, by its key; torch keeps the memory of tensors there."""

    def __init__(self, key: Any):
        self.key = key


def read_pickle(file: BinaryIO, where: str) -> tuple[Any, list[Reference]]:
    """The next pickle of a file, up to its end alone, and the references in it. Raises CheckpointError for a damaged one."""
    machine = _Machine()
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_OPERATIONS:
                raise CheckpointError(f"{where}: a pickle of more than {MAX_OPERATIONS} operations; no checkpoint has so many")
            machine.do(operation.name, argument)
        return machine.stack.pop(), machine.references
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        said = str(error) if type(error) is ValueError else "its operations do not fit each other"
        raise CheckpointError(f"{where}: damaged or foreign: not a pickle that can be read ({said}); get it again") from None


def _as_dictionary(items: list[Any]) -> dict[Any, Any]:
    """Of keys and values in turn."""
    return dict(zip(map(_as_key, items[::2]), items[1::2], strict=True))


def _as_key(value: Any) -> Any:
    """Plain values are their own keys; the hash of anything deeper is not worth its risk, so that such keys find nothing."""
    return value if type(value) in (str, bytes, int, float, bool, type(None)) else Call(None, (value,))


class _Machine:
    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.references: list[Reference] = []

    def do(self, operation: str, argument: Any) -> None:
        if operation in _VALUES:
            self.stack.append(argument)
        elif operation in _CONSTANTS:
            self.stack.append(_CONSTANTS[operation])
        elif operation in _EMPTY:
            self.stack.append(_EMPTY[operation]())
        elif operation not in _WITHOUT_EFFECT:
            step = getattr(self, f"_{operation.lower()}", None)
            if step is None:
                raise ValueError(f"its operation {operation} has no place in a checkpoint")
            step(argument)

    def _above_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    # -- the stack and the memo --------------------------------------------------------------------------------------

    def _stop(self, _):
        pass

    def _mark(self, _):
        self.marks.append(len(self.stack))

    def _pop(self, _):
        self.stack.pop()

    def _pop_mark(self, _):
        self._above_mark()

    def _dup(self, _):
        self.stack.append(self.stack[-1])

    def _put(self, place: int):
        self.memo[place] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, place: int):
        self.stack.append(self.memo[place])

    _binget = _long_binget = _get

    # -- containers --------------------------------------------------------------------------------------------------

    def _tuple(self, _):
        self.stack.append(tuple(self._above_mark()))

    def _short_tuple(self, length: int):
        items = tuple(self.stack[-length:])
        if len(items) != length:
            raise IndexError("the stack is empty")
        self.stack[-length:] = [items]

    def _tuple1(self, _):
        self._short_tuple(1)

    def _tuple2(self, _):
        self._short_tuple(2)

    def _tuple3(self, _):
        self._short_tuple(3)

    def _list(self, _):
        self.stack.append(self._above_mark())

    def _dict(self, _):
        items = self._above_mark()
        self.stack.append(_as_dictionary(items))

    def _frozenset(self, _):
        self.stack.append(frozenset(map(_as_key, self._above_mark())))

    def _extend(self, items: list[Any]):
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Call):
            raise TypeError("it appends to what is not a list")

    def _append(self, _):
        self._extend([self.stack.pop()])

    def _appends(self, _):
        self._extend(self._above_mark())

    def _update(self, items: list[Any]):
        target = self.stack[-1]
        if type(target) is dict:
            target.update(_as_dictionary(items))
        elif not isinstance(target, Call):
            raise TypeError("it sets items of what is not a dictionary")

    def _setitem(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self, _):
        self._update(self._above_mark())

    def _additems(self, _):
        items, target = self._above_mark(), self.stack[-1]
        if type(target) is set:
            target.update(map(_as_key, items))
        elif not isinstance(target, Call):
            raise TypeError("it adds to what is not a set")

    # -- what a real machine would import, call and fetch --------------------------------------------------------------

    def _global(self, path: str):
        self.stack.append(Name(path.replace(" ", ".")))

    def _stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Name(f"{module:s}.{name:s}"))

    def _called(self, function: Any, arguments: Any):
        """An ordered dictionary is made as a dictionary; everything else is only noted."""
        pairs = arguments if type(arguments) is tuple else None
        if isinstance(function, Name) and function.path == "collections.OrderedDict" and pairs is not None:
            self.stack.append(_as_dictionary([item for key, value in pairs[0] for item in (key, value)] if pairs else []))
        else:
            self.stack.append(Call(function, arguments))

    def _reduce(self, _):
        arguments, function = self.stack.pop(), self.stack.pop()
        self._called(function, arguments)

    _newobj = _reduce

    def _newobj_ex(self, _):
        del self.stack[-1]  # arguments by name
        self._reduce(None)

    def _inst(self, path: str):
        self._called(Name(path.replace(" ", ".")), tuple(self._above_mark()))

    def _obj(self, _):
        function, *arguments = self._above_mark()
        self._called(function, tuple(arguments))

    def _build(self, _):
        del self.stack[-1]  # the state; an object that is not made needs none

    def _persid(self, key: Any):
        self.references.append(Reference(key))
        self.stack.append(self.references[-1])

    def _binpersid(self, _):
        self._persid(self.stack.pop())
