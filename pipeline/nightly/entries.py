"""The entries of a night: each measured where it belongs, and judged by the nights before."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from pipeline import cluster
from pipeline.config import Experiment
from pipeline.errors import ClusterError
from pipeline.nightly import history
from pipeline.nightly.judge import Judged, Rule, judge
from pipeline.nightly.measure import Measured, accuracy_of, measure_parity, measure_speed, with_seed
from pipeline.nightly.place import Place
from pipeline.nightly.suite import AccuracyEntry, Entry, ParityEntry, SpeedEntry, Suite, expected_range, metric_names
from pipeline.nightly.trainings import Trained, train_seed
from tood.config import hash_of
from tood.errors import ToodError

UNSTEADY = 0.1  # error of a timing, as a share, that a person should know of
RETIMED = 2  # times that what seems slower is timed again


class Entries:
    """What is measured tonight, and what it is compared with."""

    def __init__(
        self,
        suite: Suite,
        place: Place,
        experiments: Mapping[str, Experiment],
        hashes: Mapping[str, str],
        nights: Sequence[history.Night],
        say: Callable[[str], None],
    ):
        """experiments, hashes: by entry; nights: before this one."""
        self.suite, self.place, self.experiments, self.hashes, self.nights, self.say = (
            suite,
            place,
            experiments,
            hashes,
            nights,
            say,
        )
        self.metrics = sum(len(metric_names(entry)) for entry in suite.entries)
        self.machine = ""
        self.trained: list[Trained] = []
        self.notes: list[str] = []

    def judged(self, night: str, identity: str, check: Callable[[], None]) -> list[Judged]:
        """Every metric's verdict. identity: the night's, for its trainings' tags; check: raises once the night must not go on."""
        judged, ray = [], self.place.ray
        with ExitStack() as stack:
            if ray.address:  # what is timed is the cluster's, not this machine
                stack.enter_context(cluster.connected(ray, 0, self.say))
                self.machine = self._there(history.machine_kind)
            else:
                self.machine = history.machine_kind()
            self._say_what_is_new()
            for entry in self.suite.parity:
                judged += self._judge(entry, measure_parity(entry))
            for entry in self.suite.speed:
                check()
                judged += self._speed(entry)
            if self.suite.accuracy:
                needs = [cluster.demand(self.experiments[e.name].ray, 0).cpus for e in self.suite.accuracy]
                stack.enter_context(cluster.connected(ray, max(needs), self.say))
            for entry in self.suite.accuracy:
                judged += self._accuracy(entry, night, identity, check)
        return judged

    def _speed(self, entry: SpeedEntry) -> list[Judged]:
        """What seems slower is timed again, and its best timing counts: a burst of other work is no regression."""
        self.say(f"{entry.name}: timing {', '.join(entry.measures)}")
        measured = {m.metric: m for m in self._timed(entry, None)}
        for _ in range(RETIMED):
            suspects = [j.metric for j in self._judge(entry, measured.values()) if j.status == "failed" and j.value is not None]
            if not suspects:
                break
            self.say(f"{entry.name}: timing {', '.join(suspects)} again")
            for m in self._timed(entry, suspects):
                if m.figure is not None and m.figure.value < measured[m.metric].figure.value:
                    measured[m.metric] = m
        found = self._judge(entry, measured.values())
        if unsteady := [f"{j.metric} ± {j.noise:.0%}" for j in found if (j.noise or 0) > UNSTEADY]:
            self.notes.append(f"the machine was busy, so timings are unsure and more of a change passes: {', '.join(unsteady)}")
        return found

    def _timed(self, entry: SpeedEntry, metrics: Sequence[str] | None) -> list[Measured]:
        experiment = self.experiments[entry.name]
        if self.place.ray.address:
            return self._there(measure_speed, entry, experiment, metrics)
        return measure_speed(entry, experiment, metrics)

    def _accuracy(self, entry: AccuracyEntry, night: str, identity: str, check: Callable[[], None]) -> list[Judged]:
        trained = []
        for seed in entry.seeds:
            check()
            name = f"nightly-{self.suite.name}-{night}-{hash_of(identity)}-{entry.name}-seed{seed}"
            experiment = with_seed(self.experiments[entry.name], seed)
            trained.append(train_seed(experiment, self.place.site, entry.name, name, identity, self.say))
        self.trained += trained
        by_seed = {t.seed: t.metrics for t in trained if not t.error}
        return self._judge(entry, accuracy_of(entry, by_seed, {t.seed: t.error for t in trained if t.error}))

    def _there(self, work: Callable, *arguments: Any) -> Any:
        """Run a function on a node of the cluster, with what a training worker gets."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        gpus = cluster.gpus_per_worker(self.place.ray)
        options = {"num_cpus": self.place.ray.cpus_per_worker, "num_gpus": gpus, "max_retries": 2}
        if self.place.ray.accelerator_type:
            options["accelerator_type"] = self.place.ray.accelerator_type
        try:
            return ray.get(ray.remote(work).options(**options).remote(*arguments))
        except RayTaskError as error:
            if isinstance(error.cause, ToodError):
                raise error.cause from None
            raise ClusterError(f"{work.__name__} on the cluster: {str(error.cause)[:300]}") from None
        except RayError as error:
            raise ClusterError(f"{work.__name__} on the cluster: {' '.join(str(error).split())[:300]}") from None

    def _judge(self, entry: Entry, measured: Iterable[Measured]) -> list[Judged]:
        by_name = {m.metric: m for m in measured}
        found = []
        for metric in metric_names(entry):
            one = by_name.get(metric, Measured(metric, None, "the entry did not measure it"))
            count = len(entry.seeds) if isinstance(entry, AccuracyEntry) else 1
            past = history.figures(self.nights, entry.name, self.hashes[entry.name], self.machine, metric, count)
            expected = expected_range(entry, metric)
            found.append(judge(metric, one.figure, past, rule_of(entry), expected, self.metrics, one.missing or "not a number"))
        return found

    def trend(self, entry: Entry, metric: str) -> list[dict[str, Any]]:
        """A metric over the comparable nights before."""
        return history.trend(history.alike(self.nights, entry.name, self.hashes[entry.name], self.machine), metric)

    def _say_what_is_new(self) -> None:
        """Where an entry cannot be compared with the last passed night, and why."""
        last = history.last_passed(self.nights)
        if last is None:
            return
        if last.machine != self.machine:
            self.notes.append(f"another kind of machine than on {last.night} ({last.machine}): nights there are not compared with")
        for name in sorted(self.hashes.keys() & last.entries.keys()):
            if last.entries[name] != self.hashes[name]:
                self.notes.append(
                    f"{name} is configured otherwise than on {last.night}: earlier nights of it are not compared with"
                )
        known = {metric for entry in self.suite.entries for metric in metric_names(entry)}
        gone = sorted(m for m in last.metrics if not m.endswith(history.NOISE) and m not in known)
        if gone:
            self.notes.append(f"the suite no longer measures {', '.join(gone)}, which it did on {last.night}")


def rule_of(entry: Entry) -> Rule:
    if isinstance(entry, ParityEntry):
        return Rule("exact")
    return Rule("accuracy" if isinstance(entry, AccuracyEntry) else "speed", entry.noise, entry.relevant)
