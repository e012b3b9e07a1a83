"""YAML that others wrote, looked through before anything is made of it: one mapping of plain values, each key once.

The look-through follows the parser's events. It runs no constructor, imports nothing, does not recurse, and ends at the first
fault; so a file of brackets cannot overflow a stack, and aliases are counted as what they stand for before they are unfolded.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tood.errors import ConfigError

LARGEST = 1 << 20  # bytes of a file
MOST = 10_000  # values, every alias written out
DEEPEST = 40  # lists and mappings in each other
_PLAIN = {None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))}


def read_yaml_text(path: Path, most: int = MOST) -> str:
    """The text of a file that `check_yaml` accepts as a mapping. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a YAML file") from None
    if len(content) > LARGEST:
        raise ConfigError(f"{path}: is larger than {LARGEST} bytes, which no configuration is; give another file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not valid YAML: byte {error.start} is no UTF-8; save it as a text in UTF-8") from None
    if check_yaml(text, str(path), most) != "mapping":
        raise ConfigError(f"{path}: expected a mapping of keys, such as train: {{epochs: 12}}")
    return text


def check_yaml(text: str, where: str, most: int = MOST) -> str:
    """What `text` holds: "mapping", "list", "value" or "nothing".

    Raises ConfigError, which begins with `where` and names the line, for what is no YAML, two documents, keys given twice,
    tags (which make objects or run code), and for more values or deeper ones than a configuration has.
    """
    import yaml

    walk = _Walk(most)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if problem := walk.see(event):
                raise ConfigError(f"{where}: line {event.start_mark.line + 1}: {problem}")
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {explain(error)}") from None
    return walk.holds


def explain(error: Exception) -> str:
    """PyYAML's error in one line, with what to do."""
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    line = f"line {mark.line + 1}: " if mark else ""
    return f"is not valid YAML: {line}{' '.join(str(said).split())[:200]}; correct it, or quote what is meant as text"


@dataclass
class _Open:
    """A list or mapping that is being read."""

    anchor: str | None
    keys: set[str] | None  # None: a list
    children: int = 0
    size: int = 1


@dataclass
class _Walk:
    most: int
    holds: str = "nothing"
    documents: int = 0
    open: list[_Open] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # of what has an anchor

    def see(self, event: Any) -> str:
        """Take an event in; what is wrong with it, and what to do, or ""."""
        kind = type(event).__name__
        if kind == "DocumentStartEvent":
            self.documents += 1
            return "a second document begins; leave one in the file" if self.documents > 1 else ""
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            return self._tag(event) or self._key(None) or self._begin(event, kind == "MappingStartEvent")
        if kind in ("MappingEndEvent", "SequenceEndEvent"):
            closed = self.open.pop()
            if closed.anchor:
                self.sizes[closed.anchor] = closed.size
            return self._add(closed.size - 1, child=False)
        if kind == "ScalarEvent":
            if event.anchor:
                self.sizes[event.anchor] = 1
            return self._tag(event) or self._key(event.value) or self._add(1)
        if kind == "AliasEvent":
            return self._alias(event.anchor) or self._key(None) or self._add(self.sizes[event.anchor])
        return ""

    def _begin(self, event: Any, mapping: bool) -> str:
        said = self._add(1)
        self.open.append(_Open(event.anchor, set() if mapping else None))
        if len(self.open) == 1:
            self.holds = "mapping" if mapping else "list"
        return said or (f"is nested more than {DEEPEST} deep; write it flatter" if len(self.open) > DEEPEST else "")

    def _add(self, size: int, child: bool = True) -> str:
        if not self.open:
            self.holds = "value" if self.holds == "nothing" else self.holds
            return ""
        self.open[-1].size += size
        self.open[-1].children += child
        total = sum(part.size for part in self.open)
        return f"holds more than {self.most} values, aliases written out; write fewer" if total > self.most else ""

    def _key(self, value: str | None) -> str:
        """Of the next child of a mapping: every other one is a key."""
        if not self.open or self.open[-1].keys is None or self.open[-1].children % 2:
            return ""
        if value is None or value in ("", "~", "null", "Null", "NULL"):
            return "a list, a mapping, an alias or nothing stands where a key must be; write the key's name"
        if value in self.open[-1].keys:
            return f"the key {value!r:.80} is given twice; leave one of them"
        self.open[-1].keys.add(value)
        return ""

    def _alias(self, name: str) -> str:
        if any(part.anchor == name for part in self.open):
            return f"what &{name:.40} names contains itself by *{name:.40}; write the value out"
        return "" if name in self.sizes else f"undefined alias *{name:.40}; write the value out"

    @staticmethod
    def _tag(event: Any) -> str:
        return "" if event.tag in _PLAIN else f"the tag {event.tag!r:.80} is not read, only plain values are; leave it out"
