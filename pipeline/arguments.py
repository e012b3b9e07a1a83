"""argparse as the `tood` command needs it: errors like all others, settings beside options, numbers within bounds."""

import argparse
import contextlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tood.errors import ToodError


class Parser(argparse.ArgumentParser):
    """Raises ToodError for what it refuses; words of `settings` may stand on either side of an option."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **{"formatter_class": Help} | options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:
        options, rest = self.parse_known_args(args, namespace)  # `rest`: argparse fills a list of words but once
        if stray := [word for word in rest if word.startswith("-") or not hasattr(options, "settings")]:
            self.error(f"unknown: {' '.join(stray)}")
        if rest:
            options.settings = [*options.settings, *rest]
        return options

    def error(self, message: str) -> NoReturn:
        raise ToodError(f"{shortened(message)}; see `{self.prog} --help`")


def shortened(message: str, limit: int = 500) -> str:
    """argparse repeats a word that it refuses, of whatever length."""
    return message if len(message) <= limit else f"{message[: limit // 2]} ... {message[-limit // 4 :]}"


class Help(argparse.HelpFormatter):
    """Help of at most 100 columns, the explanations beside what they explain."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=min(100, shutil.get_terminal_size((100, 24)).columns))

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):  # whose own indentation argparse does not count
            self._action_max_length += self._indent_increment


def children(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The verbs below a command or a group, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


class Verbs:
    """Where verbs are added: the command itself, or a group of it such as `tood data`."""

    def __init__(self, parser: argparse.ArgumentParser, title: str = "verbs", required: bool = True):
        self._parsers = parser.add_subparsers(title=title, required=required, metavar="VERB")

    def add(self, name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        """A verb that `run` does; its arguments are for the caller to add."""
        added = self._parsers.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    def group(self, name: str, text: str) -> "Verbs":
        return Verbs(self._parsers.add_parser(name, help=text, description=text))


def number(kind: type, low: int, high: int) -> Callable[[str], float]:
    """An argument's `type`: a number of a kind from `low` to `high`."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= (value := kind(text)) <= high:  # NaN is not
                return value
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not a {'whole ' if kind is int else ''}number from {low} to {high}")

    return read


def image_size(text: str) -> tuple[int, int]:
    """An argument's `type`: WIDTHxHEIGHT in multiples of 32, as images are padded to."""
    width, cross, height = text.lower().partition("x")
    if cross and width.isdecimal() and height.isdecimal():
        sides = int(width), int(height)
        if all(side % 32 == 0 and 32 <= side <= 8192 for side in sides):
            return sides
    raise argparse.ArgumentTypeError(f"{text!r:.80} is not WIDTHxHEIGHT in multiples of 32 up to 8192, such as 1280x800")
