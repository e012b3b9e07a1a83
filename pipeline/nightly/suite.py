"""What a night measures: a YAML file of accuracy, speed and parity entries, checked before anything starts.

    accuracy   an experiment on a fixed budget, once for each seed; a figure is the mean of the last epoch's over the seeds
    speed      parts of training, each the ratio to a reference operation that is timed by turns with it
    parity     the compiled evaluator beside pycocotools on the same detections

`settings` are under every entry's own, the command line's are above all. An expected range is [low, high], null for an open end;
a figure outside of it fails the night whatever the nights before it were.
"""

import difflib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import METRICS, NAME, Experiment, experiment_of, merge
from pipeline.experiment_files import experiments_folder, load_values, parse_overrides
from tood.bench.parts import OPERATIONS
from tood.bench.timing import SECONDS
from tood.config import bounded, build, hash_of, identity, to_dict, unhashed
from tood.errors import ConfigError

FOLDER = "suites"
DIFFERENCE = "largest_difference"  # the metric of a parity entry
PARITY_TOLERANCE = 1e-9

Range = tuple[float, float]


@dataclass(frozen=True)
class AccuracyEntry:
    name: str = ""
    experiment: str = ""  # a shipped name or a YAML file
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    metrics: tuple[str, ...] = ("val/AP",)
    expected: dict | None = unhashed(None)  # {metric: [low, high]}
    noise: float = bounded(0.01, 0, 1, identity=False)  # standard deviation between seeds as far as it was known beforehand
    relevant: float = bounded(0.005, 0, 1, identity=False)  # a smaller change is nobody's concern, however sure
    model: str = unhashed("")  # name in the registry for a better model of a passed night; "": none is registered

    def check(self) -> None:
        _check_experiment(self.experiment)
        for i, seed in enumerate(self.seeds):
            if not 0 <= seed < 2**31:
                raise ConfigError(f"seeds[{i}]: {seed} is not between 0 and {2**31 - 1}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds: {list(self.seeds)} are not different numbers; give some such as [0, 1, 2]")
        if self.model and not NAME.fullmatch(self.model):
            raise ConfigError(f"model: {self.model!r:.80} names a model; use up to 80 letters, digits and . _ -")
        _check_words("metrics", self.metrics, METRICS)
        _check_entry(self.name, self.metrics, self.expected)


@dataclass(frozen=True)
class SpeedEntry:
    name: str = ""
    experiment: str = ""
    settings: tuple[str, ...] = ()
    measures: tuple[str, ...] = OPERATIONS
    seconds: float = bounded(SECONDS, 0.1, 600, identity=False)  # that each is timed for
    expected: dict | None = unhashed(None)
    noise: float = bounded(0.06, 0, 1, identity=False)  # between nights, as a share, as far as it was known beforehand
    relevant: float = bounded(0.15, 0, 10, identity=False)

    def check(self) -> None:
        _check_experiment(self.experiment)
        _check_words("measures", self.measures, OPERATIONS)
        _check_entry(self.name, self.measures, self.expected)


@dataclass(frozen=True)
class ParityEntry:
    name: str = ""
    images: int = bounded(100, 1, 100_000)  # of generated objects and detections
    seed: int = bounded(0, 0, 2**31 - 1)
    annotations: str = unhashed("")  # or files: COCO JSON, and detections in COCO's results form
    detections: str = unhashed("")

    def check(self) -> None:
        if bool(self.annotations) != bool(self.detections):
            raise ConfigError("annotations: they and detections belong together; give both files or neither")
        _check_entry(self.name, (DIFFERENCE,), None)


Entry = AccuracyEntry | SpeedEntry | ParityEntry


@dataclass(frozen=True)
class Suite:
    name: str = "suite"
    description: str = unhashed("")
    settings: tuple[str, ...] = ()
    accuracy: tuple[AccuracyEntry, ...] = ()
    speed: tuple[SpeedEntry, ...] = ()
    parity: tuple[ParityEntry, ...] = ()

    def check(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"name: {self.name!r:.80} names a suite; use up to 80 letters, digits and . _ -")
        names = [entry.name for entry in self.entries]
        if not names:
            raise ConfigError("a suite measures something: add entries to accuracy, speed or parity")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two entries are called {twice[0]!r}; their metrics would have one name; rename one")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """In the order of a night: what is quick, and what wants an idle machine, comes first."""
        return (*self.parity, *self.speed, *self.accuracy)

    def entry(self, name: str) -> Entry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        known = [entry.name for entry in self.entries]
        raise ConfigError(f"suite {self.name} has no entry {name!r}; {_nearest(name, known)}")


def suite_names() -> list[str]:
    return sorted(path.stem for path in (experiments_folder() / FOLDER).glob("*.yaml"))


def read_suite(name: str) -> Suite:
    """A shipped suite by its name, or a YAML file. Raises ConfigError."""
    if Path(name).suffix not in (".yaml", ".yml"):
        if name not in suite_names():
            raise ConfigError(f"suite {name!r}: neither shipped nor a .yaml file; {_nearest(name, suite_names())}")
        name = f"{FOLDER}/{name}"
    suite = build(Suite, load_values(name))
    for entry in suite.parity:
        for file in filter(None, (entry.annotations, entry.detections)):
            if not Path(file).is_file():
                raise ConfigError(f"suite {suite.name}, entry {entry.name}: {file}: no such file; name one that is there")
    return suite


def suite_values(suite: Suite) -> dict[str, Any]:
    """A suite as plain values that `build` reads back to the same."""
    return to_dict(suite)


def experiment_for(suite: Suite, entry: AccuracyEntry | SpeedEntry, settings: Sequence[str]) -> Experiment:
    """The experiment that an entry means under the command line's settings. Raises ConfigError."""
    values = load_values(entry.experiment, [*suite.settings, *entry.settings])
    try:
        return experiment_of(merge(values, parse_overrides(settings)))
    except ConfigError as error:
        raise ConfigError(f"suite {suite.name}, entry {entry.name}: {error}") from None


def place_values(suite: Suite, settings: Sequence[str]) -> dict[str, Any]:
    """What the suite and the command line say of where things are kept."""
    return merge(parse_overrides(suite.settings), parse_overrides(settings))


def metric_names(entry: Entry) -> list[str]:
    """The metrics of an entry as a night names them: ENTRY/METRIC."""
    own = entry.metrics if isinstance(entry, AccuracyEntry) else entry.measures if isinstance(entry, SpeedEntry) else (DIFFERENCE,)
    return [f"{entry.name}/{metric}" for metric in own]


def check_metric(entry: Entry, metric: str) -> None:
    """Raises ConfigError where the entry has no such metric."""
    if metric not in (known := metric_names(entry)):
        raise ConfigError(f"entry {entry.name} does not measure {metric!r}; {_nearest(metric, known)}")


def expected_range(entry: Entry, metric: str) -> Range:
    """Of one of `metric_names`; open ends are infinite."""
    if isinstance(entry, ParityEntry):
        return 0.0, PARITY_TOLERANCE
    low, high = (entry.expected or {}).get(metric.removeprefix(f"{entry.name}/"), (None, None))
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def entry_hash(entry: Entry, experiment: Experiment | None) -> str:
    """What must be equal for two nights' figures of an entry to be comparable."""
    own = {key: value for key, value in identity(entry).items() if key not in ("experiment", "settings", "metrics", "measures")}
    return hash_of([own, identity(experiment) if experiment else None])


def _check_entry(name: str, metrics: Sequence[str], expected: Any) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(f"name: {name!r:.80} names an entry's metrics; use up to 80 letters, digits and . _ -")
    for metric, bounds in (expected or {}).items():
        if metric not in metrics:
            raise ConfigError(f"expected.{metric}: the entry does not measure it; {_nearest(str(metric), metrics)}")
        numbers = bounds if isinstance(bounds, list | tuple) and len(bounds) == 2 else (True,)
        if not all(end is None or (type(end) in (int, float) and abs(end) <= sys.float_info.max) for end in numbers) or (
            None not in numbers and numbers[0] > numbers[1]
        ):
            raise ConfigError(f"expected.{metric}: {bounds!r:.80} is no range; write [low, high], null for an open end")


def _check_experiment(name: str) -> None:
    if not name:
        raise ConfigError("experiment: none is named; give a shipped one (see `tood experiments`) or a YAML file")


def _check_words(key: str, words: Sequence[str], known: Sequence[str]) -> None:
    if not words:
        raise ConfigError(f"{key}: the list is empty; choose from {', '.join(known)}")
    if twice := sorted({word for word in words if list(words).count(word) > 1}):
        raise ConfigError(f"{key}: {twice[0]!r:.80} is given twice; leave one")
    for word in words:
        if word not in known:
            raise ConfigError(f"{key}: {word!r} is not measured; {_nearest(word, known)}")


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(known) or 'none'}"
