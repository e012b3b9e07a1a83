"""Experiments as they are written: a YAML file by path or shipped name, what it `extends`, and `key=value` overrides.

OmegaConf reads the files and the overrides; its interpolations are refused, since `${oc.env:...}` would copy secrets from
the environment into everything that a configuration is logged to.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import merge
from pipeline.tracking.facts import redact
from tood.errors import ConfigError
from tood.plain_yaml import check_yaml, explain, read_yaml_text


def experiments_folder() -> Path:
    """The folder of shipped YAML files; it lies beside this package in a checkout and when installed."""
    return Path(__file__).resolve().parent.parent / "experiments"


def experiment_names() -> list[str]:
    root = experiments_folder()
    names = (str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("suites/"))  # those are `tood nightly`'s


def load_values(name: str, overrides: Iterable[str] = ()) -> dict:
    """Values of a shipped name (`demo`, `sweeps/m`) or a YAML file under `key=value` overrides, defaults not filled in."""
    path = find_experiment(name)
    values = _read(path, ())
    values.setdefault("name", path.stem)
    return merge(values, parse_overrides(overrides))


def find_experiment(name: str) -> Path:
    """A path as given, or a shipped experiment by its name."""
    if not name.isprintable():
        raise ConfigError(f"experiment {name!r:.200}: no such file; give a YAML file or a name of `tood experiments`")
    given = Path(name)
    if given.suffix in (".yaml", ".yml"):
        if not given.is_file():
            raise ConfigError(f"{given}: no such file; give a YAML file or a name of `tood experiments`")
        return given
    shipped = (experiments_folder() / f"{name}.yaml").resolve()
    if not shipped.is_relative_to(experiments_folder().resolve()) or not shipped.is_file():
        close = difflib.get_close_matches(name, experiment_names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "`tood experiments` lists those that are shipped"
        raise ConfigError(f"experiment {name!r}: neither shipped nor a .yaml file; {hint}")
    return shipped


def parse_overrides(overrides: Iterable[str]) -> dict:
    """["train.lr=0.02", ...] -> a nested mapping. Raises ConfigError for anything that is not key=value."""
    values: dict = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key or any(not part for part in key.split(".")):
            raise ConfigError(f"{redact(text)!r:.200}: expected key=value, such as train.epochs=24")
        check_yaml(value, f"{key:.80}")
        try:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([text]))
        except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{key:.80}: {explain(error)}") from None
        _refuse_interpolation(parsed, f"{key:.80}")
        values = merge(values, parsed)
    return values


def _read(path: Path, chain: tuple[Path, ...]) -> dict:
    path = path.resolve()
    if path in chain:
        raise ConfigError(f"{path.name}: extends itself by way of {' -> '.join(p.name for p in chain)}; leave out one `extends`")
    text = read_yaml_text(path)
    try:
        values = OmegaConf.to_container(OmegaConf.create(text))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: {explain(error)}") from None
    _refuse_interpolation(values, str(path))
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) and parent for parent in parents):
        raise ConfigError(f"{path}: extends: expected the name of an experiment or a list of names, got {parents!r:.80}")
    merged: dict = {}
    for parent in parents:
        merged = merge(merged, _read(_parent_file(parent, path), (*chain, path)))
    merged.pop("name", None)  # a name and a description are a file's own
    merged.pop("description", None)
    return merge(merged, values)


def _parent_file(parent: str, child: Path) -> Path:
    if parent.startswith(("/", "~")) or ".." in parent.split("/"):
        raise ConfigError(f"{child}: extends {parent!r:.200}, a path that leaves its folder; copy what is meant beside it")
    for folder in (child.parent, experiments_folder()):
        candidate = folder / f"{parent.removesuffix('.yaml')}.yaml"  # a name may hold dots: schedule_1.5x
        if candidate.is_file() and candidate.resolve() != child:
            return candidate
    raise ConfigError(
        f"{child}: extends {parent!r:.200}, which is neither beside it nor a shipped experiment; correct the name "
        "(see `tood experiments`)"
    )


def _refuse_interpolation(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_interpolation(key, where)
            _refuse_interpolation(inner, where)
    elif isinstance(value, list):
        for inner in value:
            _refuse_interpolation(inner, where)
    elif isinstance(value, str) and "${" in value:
        raise ConfigError(f"{where}: interpolations such as {value!r:.80} are not read; write the value itself")
