"""Clusters by name: one cluster.yaml holds where each one's Ray, MLflow, object store and folders are.

    default: lab
    clusters:
      lab:
        jobs: https://ray.example:8265
        token: {env: LAB_RAY_TOKEN}
        folder: /mnt/lab
        settings: {tracking.uri: "https://mlflow.example", storage.url: "s3://detectors/tood"}
        environment: {AWS_ENDPOINT_URL: "https://objects.example"}
        secrets: {AWS_SECRET_ACCESS_KEY: {file: lab_secret_key}}

Settings stand under those of the command line, and none may change what a run learns. Secrets are named, never written:
`{env: NAME}` or `{file: PATH}`; they serve commands on this machine, while a job has its own from the cluster's nodes.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.config import experiment_of, merge
from pipeline.experiment_files import parse_overrides
from pipeline.tracking.facts import redact
from tood.config import build
from tood.errors import ConfigError
from tood.plain_yaml import explain, read_yaml_text

FILES = (Path("cluster.yaml"), Path("~/.config/tood/cluster.yaml"))
LARGEST_SECRET = 1 << 16  # bytes
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = "name where it is found: {env: NAME} or {file: PATH}, never the secret itself"


@dataclass(frozen=True)
class Here:
    """What differs for commands on this machine, such as the addresses of port-forwards."""

    settings: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    jobs: str = ""  # address of Ray's job server, which is its dashboard's
    description: str = ""
    token: Any = None  # where Ray's token is found
    code: Literal["carry", "installed"] = "carry"  # do jobs bring the project's files, or have the nodes `tood` installed?
    python: str = "python"  # a job's interpreter
    folder: str = ""  # on the nodes: where the relative paths of experiments lie
    settings: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)  # of jobs and of commands here; no secrets
    secrets: Any = None  # variable -> where its value is found
    here: Here = field(default_factory=Here)

    def check(self) -> None:
        if not re.fullmatch(r"https?://([^\s/@\[\]]+|\[[0-9a-fA-F:]+\](:\d+)?)(/[^\s@]*)?", self.jobs):
            shown = f"{redact(self.jobs)!r:.200} is no such address" if self.jobs else "is missing"
            raise ConfigError(f"jobs: {shown}; give the http(s)://HOST:PORT of Ray's dashboard, without credentials")
        if self.folder and not self.folder.startswith(("/", "~")):
            raise ConfigError(f"folder: {self.folder!r} is relative; give the folder on the nodes from / or ~")
        for where, settings in (("settings", self.settings), ("here.settings", self.here.settings)):
            _check_settings(where, settings)
        for where, variables in (("environment", self.environment), ("here.environment", self.here.environment)):
            _check_environment(where, variables)
        if self.token is not None:
            _check_reference("token", self.token)
        if not isinstance(self.secrets, dict | None):
            raise ConfigError(f"secrets: expected a mapping of variables; {_REFERENCE}")
        for name, reference in (self.secrets or {}).items():
            _check_variable("secrets", name)
            _check_reference(f"secrets.{name}", reference)


@dataclass(frozen=True)
class Cluster:
    """A profile under its name, and the folder that its `{file: ...}` are relative to."""

    name: str
    profile: Profile
    origin: Path

    def job_settings(self) -> list[str]:
        """key=value words for what runs inside the cluster."""
        return words({"ray.address": "auto"} | flatten(self.profile.settings))

    def local_settings(self) -> list[str]:
        """The same for commands on this machine."""
        return words(flatten(merge(nested(self.profile.settings), nested(self.profile.here.settings))))

    def job_environment(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.profile.environment.items()}

    def enter(self) -> None:
        """Give this process the profile's variables and secrets. Raises ConfigError for a secret that is not where it should be."""
        variables = self.job_environment() | {name: str(value) for name, value in self.profile.here.environment.items()}
        secrets = {name: self._value(f"secrets.{name}", ref) for name, ref in (self.profile.secrets or {}).items()}
        os.environ.update(variables | secrets)

    def token(self) -> str:
        """Ray's token; "" where the profile names none."""
        return self._value("token", self.profile.token) if self.profile.token else ""

    def _value(self, key: str, reference: Mapping[str, str]) -> str:
        where = f"{self.origin.name}: clusters.{self.name}.{key}"
        if name := reference.get("env"):
            if not os.environ.get(name):
                raise ConfigError(f"{where}: the variable {name} is not set; export it")
            return os.environ[name]
        file = self.origin.parent / Path(reference["file"]).expanduser()
        try:
            with file.open("rb") as opened:
                value = opened.read(LARGEST_SECRET + 1).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", "not text")
            raise ConfigError(f"{where}: {file} cannot be read ({said}); put the secret there, readable by you") from None
        problem = (
            "is empty" if not value
            else f"is larger than {LARGEST_SECRET} bytes" if len(value) > LARGEST_SECRET
            else "holds a NUL character" if "\0" in value
            else "holds more than one line" if key == "token" and len(value.split()) > 1
            else ""
        )  # fmt: skip
        if problem:
            raise ConfigError(f"{where}: {file} {problem}; put the secret alone there")
        return value


def find_cluster(name: str | None = None, file: str | None = None) -> Cluster:
    """The cluster `name`, by default the file's own default or its only one. Raises ConfigError."""
    path = _find_file(file)
    profiles, default = _read(path)
    if name is None:
        name = default or (next(iter(profiles)) if len(profiles) == 1 else None)
        if name is None:
            raise ConfigError(f"{path}: holds {', '.join(profiles)}; pick one with --cluster NAME, or set `default:`")
    if name not in profiles:
        import difflib

        close = difflib.get_close_matches(name, profiles, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(profiles)}"
        raise ConfigError(f"--cluster {name}: {path} has no such cluster; {hint}")
    return Cluster(name, profiles[name], path.absolute())


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"tracking": {"uri": u}} and {"tracking.uri": u} -> {"tracking.uri": u}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    return parse_overrides(words(flatten(settings)))


def words(flat: Mapping[str, Any]) -> list[str]:
    """key=value words that read back to these values."""
    return [f"{key}={_text(value)}" for key, value in flat.items()]


def _text(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/~][^\s#'\"{}\[\],&*!|>%@`]*", value) and yaml.safe_load(value) == value:
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, explicit_end=False).removesuffix("\n...\n").strip()


def _find_file(given: str | None) -> Path:
    if given:
        if not Path(given).is_file():
            raise ConfigError(f"--profiles {given}: no such file; give a cluster.yaml")
        return Path(given)
    for file in FILES:
        if file.expanduser().is_file():
            return file.expanduser()
    raise ConfigError(f"no file of clusters: write {FILES[0]} or {FILES[1]}, or give --profiles FILE")


def _read(path: Path) -> tuple[dict[str, Profile], str | None]:
    try:
        values = yaml.safe_load(read_yaml_text(path))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: {explain(error)}") from None
    if not isinstance(values.get("clusters"), dict) or not values["clusters"]:
        raise ConfigError(f"{path}: expected `clusters:` with a mapping of names to clusters")
    if strange := [str(key) for key in values if key not in ("clusters", "default")]:
        raise ConfigError(f"{path}: {strange[0]:.80}: unknown key; valid: clusters, default")
    profiles = {}
    for name, entry in values["clusters"].items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ConfigError(f"{path}: clusters: {name!r:.80} is not a name; use letters, digits and . _ -")
        profiles[name] = build(Profile, entry, f"{path}: clusters.{name}")
    default = values.get("default")
    if default is not None and (not isinstance(default, str) or default not in profiles):
        raise ConfigError(f"{path}: default: {default!r:.80} is none of {', '.join(profiles)}; name one")
    return profiles, default


def _check_settings(where: str, settings: Mapping[str, Any]) -> None:
    for key, value in flatten(settings).items():
        word = words({key: value})[0]
        if redact(word) != word:
            raise ConfigError(f"{where}.{key}: holds a credential; put a reference under `secrets`: {_REFERENCE}")
        try:
            same = experiment_of(parse_overrides([word])).hash == experiment_of({}).hash
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if not same:
            raise ConfigError(f"{where}.{key}: changes what a run learns; say it in the experiment, a cluster's settings say where")


def _check_environment(where: str, variables: Mapping[str, Any]) -> None:
    for name, value in variables.items():
        _check_variable(where, name)
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ConfigError(f"{where}.{name}: expected a text or a number; quote it")
        if "\0" in str(value):
            raise ConfigError(f"{where}.{name}: holds a NUL character, which no variable can; remove it")
        if redact(f"{name}={value}") != f"{name}={value}":
            raise ConfigError(f"{where}.{name}: is a secret, and these variables are sent along; under `secrets`, {_REFERENCE}")


def _check_variable(where: str, name: Any) -> None:
    if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
        raise ConfigError(f"{where}: {name!r:.60} is not the name of a variable; use letters, digits and _")


def _check_reference(where: str, reference: Any) -> None:
    """Its value is never shown: a person may have put the secret itself there."""
    sound = isinstance(reference, dict) and len(reference) == 1 and next(iter(reference)) in ("env", "file")
    target = next(iter(reference.values())) if sound else None
    if not isinstance(target, str) or not target or ("env" in reference and not _VARIABLE.fullmatch(target)):
        raise ConfigError(f"{where}: {_REFERENCE}")
