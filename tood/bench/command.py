"""What the bench does with its arguments: shared by `tood bench` and `python -m tood.bench`."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from tood.bench import cases, files
from tood.bench.arguments import ALL, GROWTH
from tood.bench.growth import Growth, draw, growths
from tood.bench.ratio import Ratio
from tood.bench.report import growth_line, legend, machine, machine_line, measure, profiles, ratio_line, table
from tood.config import DataConfig, build
from tood.errors import ConfigError
from tood.memory import keep_freed_memory

GROUPS = {
    "step": cases.steps,
    "assign": cases.assignments,
    "loss": cases.loss_groups,
    "decode": cases.decodings,
    "infer": cases.inferences,
    "eval": files.evaluations,
    "loader": files.loaders,
}


Growing = Callable[[cases.Sizes, torch.device, float], Iterator[Growth]]
Comparing = Callable[[cases.Sizes, torch.device, float], Iterator[Ratio]]


def run(
    options: argparse.Namespace, growing: Mapping[str, Growing] | None = None, comparing: Mapping[str, Comparing] | None = None
) -> int:
    """Measure and print. Raises ConfigError for what cannot be measured, DataError where photographs cannot be read.

    growing, comparing: what else is measured, by name.
    """
    growing, comparing = {GROWTH: growths, **(growing or {})}, comparing or {}
    names, data = _wanted(options.settings, (*GROUPS, *growing, *comparing))
    if options.plot and not growing.keys() & set(names):
        raise ConfigError(f"--plot shows how costs grow; add {' or '.join(growing)}")
    if options.seconds < 0 or (options.threads is not None and options.threads < 1):
        raise ConfigError("--seconds and --threads: expected positive numbers")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(options.threads or threads)
        found = _measure(names, data, options, growing, comparing)
    finally:
        torch.set_num_threads(threads)
    if options.json:
        print(json.dumps(found))
    return 0


def _measure(
    names: Sequence[str],
    data: DataConfig | None,
    options: argparse.Namespace,
    growing: Mapping[str, Growing],
    comparing: Mapping[str, Comparing],
) -> dict[str, Any]:
    say = (lambda text: None) if options.json else (lambda text: print(text, flush=True))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as training and detection do
    sizes = cases.QUICK if options.quick else cases.FULL
    found: dict[str, Any] = {"machine": machine(), "rows": [], "growth": [], "ratios": []}
    say(machine_line(found["machine"]))
    for group in _groups([name for name in names if name in GROUPS], sizes, device, data):
        if not group.cases:
            say(f"\n{group.name}: left out, pycocotools and hotcoco are not installed")
            continue
        if options.quick:  # nobody published such
            group = group._replace(cases=[case._replace(peer=None) for case in group.cases])
        rows = measure(group, device, options.seconds)
        found["rows"] += rows
        say(f"\n{table(rows)}")
        if options.profile:
            for text in profiles(group, options.profile, device):
                say(f"\n{text}")
    if found["rows"]:
        say(f"\n{legend(found['rows'])}")
    for name in [name for name in names if name in growing]:
        say(f"\n{name}: cost follows size to the power of")
        for growth in growing[name](sizes, device, options.seconds):
            found["growth"].append(growth)
            say(growth_line(growth))
    for name in [name for name in names if name in comparing]:
        say(f"\n{name}: how many times as long")
        for ratio in comparing[name](sizes, device, options.seconds):
            found["ratios"].append(ratio)
            say(ratio_line(ratio))
    if options.plot:
        draw(found["growth"], options.plot)
    return found | {key: [row._asdict() for row in found[key]] for key in ("rows", "growth", "ratios")}


def _groups(names: Sequence[str], sizes: cases.Sizes, device: torch.device, data: DataConfig | None) -> Iterator[cases.Group]:
    for name in names:
        if name == "loader":
            yield from files.loaders(sizes, device, data)
        else:
            yield from GROUPS[name](sizes, device)


def _wanted(words: Sequence[str], known: Sequence[str]) -> tuple[list[str], DataConfig | None]:
    """["loader", "data.root=x"] -> what to measure, in the order of `known`, and whose photographs."""
    choices = ", ".join((*known, ALL))
    if unknown := [word for word in words if "=" not in word and word not in (*known, ALL)]:
        raise ConfigError(f"{unknown[0]!r} is not measured; choose from {choices}")
    names = [name for name in known if name in words or ALL in words]
    if not names:
        raise ConfigError(f"nothing to measure; choose from {choices}")
    values: dict[str, Any] = {}
    for key, _, value in (word.partition("=") for word in words if "=" in word):
        *path, last = key.split(".")
        if path[:1] != ["data"]:
            raise ConfigError(f"{key}: only data.KEY=VALUE is set here, such as data.root=FOLDER")
        inner = values
        for part in path[1:]:
            inner = inner.setdefault(part, {})
        inner[last] = _value(value)
    if values and "loader" not in names:
        raise ConfigError(f"data.* says which photographs loader reads; add loader to {', '.join(names)}")
    return names, build(DataConfig, values, "data") if values else None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
