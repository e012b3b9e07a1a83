"""A night: measure what the suite says, judge it by the nights before, write the verdict, promote what became better.

The same night, code and suite again is the same night: with a verdict it is only read back, without one it goes on where it was.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.config import Experiment
from pipeline.errors import TrackingError
from pipeline.nightly import history
from pipeline.nightly.bisect import Found
from pipeline.nightly.code import Code, commits_between, current_code
from pipeline.nightly.entries import Entries
from pipeline.nightly.page import page_of
from pipeline.nightly.place import at_place, find_place
from pipeline.nightly.suite import Suite, entry_hash, experiment_for, metric_names, suite_values
from pipeline.nightly.trainings import Trained, end_left_open, register_better, remove_what_is_not_needed
from pipeline.nightly.verdict import Verdict, from_values, markdown, to_values
from pipeline.storage.lock import Held, hold
from pipeline.tracking.facts import environment_tags
from pipeline.tracking.past_runs import artifact
from pipeline.tracking.runs import Run
from tood.atomic import write_file
from tood.config import hash_of
from tood.errors import ToodError

FILES = ("verdict.json", "verdict.md", "report.html")  # artifacts, and files of the night's folder
NOTE_CHARACTERS = 4500  # of a run's description, which MLflow keeps as a tag


class Outcome(NamedTuple):
    verdict: Verdict
    fresh: bool  # measured now, not read back
    folder: Path


class Night:
    """One night of a suite on its way to a verdict."""

    def __init__(self, suite: Suite, settings: Sequence[str], night: str, say: Callable[[str], None]):
        """Raises ToodError for what cannot work, before anything is measured."""
        self.suite, self.night, self.say = suite, night, say
        self.code: Code = current_code()
        asked = {entry.name: experiment_for(suite, entry, settings) for entry in (*suite.speed, *suite.accuracy)}
        self.place = find_place(suite, settings)  # reached, and written to, once every entry is known to make sense
        self.site = self.place.site
        models = {entry.name: entry.model for entry in suite.accuracy}
        self.experiments: dict[str, Experiment] = {
            name: at_place(experiment, suite, self.place, models.get(name, "")) for name, experiment in asked.items()
        }
        self.hashes = {entry.name: entry_hash(entry, self.experiments.get(entry.name)) for entry in suite.entries}
        self.suite_hash = hash_of([suite_values(suite), self.hashes])
        self.base = f"nightly/{suite.name}/{night}/{self.code.name}/{self.suite_hash}"
        self.kept: set[str] = set()  # checkpoints that were registered

    @property
    def folder(self) -> Path:
        return self.site.output / "nightly" / self.suite.name / self.night

    def attempts(self) -> list[history.Night]:
        """This very night as MLflow knows it: the first time, and each --again."""
        known = history.read_nights(self.site.tracking, self.suite.name)
        return [n for n in known if n.identity == self.base or n.identity.startswith(f"{self.base}/")]

    def run(self, again: bool) -> Outcome:
        if not again and (done := self._finished()):
            return done
        with self.locked() as held:
            if not again and (done := self._finished()):  # the one that held the lock has just ended
                return done
            attempts = self.attempts()
            count = len(attempts)
            if attempts and attempts[-1].verdict not in history.FINAL:
                identity = attempts[-1].identity
                self.say(f"night {self.night} goes on where it was left")
            else:
                identity = f"{self.base}/{count + 1}" if count else self.base
            return self._tracked(identity, held)

    def locked(self) -> AbstractContextManager[Held]:
        """One night or bisection of the suite at a time. Raises StorageError, at once, that names who is at it."""
        return hold(self.site.store, f"nightly/{self.suite.name}.lock", f"suite {self.suite.name}")

    def keep_bisection(self, verdict: Verdict, found: Found) -> None:
        """In the night's MLflow run."""
        run = Run.attach(self.site.tracking, verdict.run_id)
        run.document(found._asdict(), "bisection.json")
        run.tags({"tood.bisection": found.said})

    def _finished(self) -> Outcome | None:
        done = [n for n in self.attempts() if n.verdict in history.FINAL]
        if not done:
            return None
        with tempfile.TemporaryDirectory() as folder:
            file = artifact(self.site.tracking, done[-1].run_id, FILES[0], Path(folder))
            if file is None:
                raise TrackingError(f"night {self.night} of {self.suite.name} has a verdict in MLflow, but its {FILES[0]} is gone; "
                                    "--again measures it anew")  # fmt: skip
            return Outcome(from_values(json.loads(file.read_text())), False, self.folder)

    def _tracked(self, identity: str, held: Held) -> Outcome:
        """The night within its MLflow run, which says the truth however it ends."""
        uri, started = self.site.tracking, time.time()
        before = history.read_nights(uri, self.suite.name)
        self._end_left_open(before, identity)
        tags = {
            "tood.kind": history.KIND, history.SUITE: self.suite.name, history.NIGHT: self.night, history.CODE: self.code.name,
            history.VERDICT: "running", history.IDENTITY: identity, history.BEGUN: f"{started:.3f}",
            "config_hash": self.suite_hash, history.ENTRIES: json.dumps(self.hashes),
        }  # fmt: skip
        tags |= environment_tags()
        if self.code.commit:
            tags |= {"mlflow.source.git.commit": self.code.commit, "git.dirty": "yes" if self.code.dirty else "no"}
        name = f"{self.suite.name} {self.night}"
        tracked = Run.open(uri, self.site.experiment_id, identity=identity, name=name, tags=tags)
        nights = history.before(before, self.night, tracked.run_id)
        work = Entries(self.suite, self.place, self.experiments, self.hashes, nights, self.say)
        try:
            verdict = self._verdict(tracked, work, identity, started, held)
            tracked.tags({history.VERDICT: verdict.verdict, "tood.exit_code": verdict.exit_code})
            tracked.finish("FINISHED")
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            with suppress(ToodError):
                said = "interrupted" if stopped else " ".join(f"{type(error).__name__}: {error}".split())[:500]
                tracked.tags({history.VERDICT: "interrupted" if stopped else "error", "tood.error": said})
            tracked.finish("KILLED" if stopped else "FAILED")
            raise
        if verdict.verdict == "passed":
            remove_what_is_not_needed(self.site, work.trained, self.kept)
        return Outcome(verdict, True, self.folder)

    def _verdict(self, tracked: Run, work: Entries, identity: str, started: float, held: Held) -> Verdict:
        judged = work.judged(self.night, identity, held.check)
        tracked.tags({history.MACHINE: work.machine})
        figures = {j.metric: j.value for j in judged if j.value is not None}
        figures |= {j.metric + history.NOISE: j.noise for j in judged if j.noise is not None}
        step = max((tracked.last_step(key) for key in figures if tracked.last_step(key) is not None), default=-1) + 1
        tracked.metrics(figures, step=step)
        tracked.deliver()
        failed = any(j.status == "failed" for j in judged)
        promoted = [] if failed else self._promote(work.trained)
        since = history.last_passed(work.nights)
        between = commits_between(since.commit, self.code.commit) if since else None
        verdict = Verdict(
            suite=self.suite.name,
            night=self.night,
            verdict="failed" if failed else "passed",
            description=self.suite.description,
            commit=self.code.commit,
            dirty=self.code.dirty,
            machine=work.machine,
            run_id=tracked.run_id,
            minutes=(time.time() - started) / 60,
            judged=tuple(judged),
            trends={m: work.trend(entry, m) for entry in self.suite.entries for m in metric_names(entry)},
            since={"night": since.night, "commit": since.commit, "run_id": since.run_id} if since else {},
            commits=between.commits if between else (),
            commits_said=between.said if between else "no night passed before",
            trainings=[
                {"entry": t.entry, "seed": t.seed, "run_id": t.run_id, "value": t.metrics.get("val/AP")} for t in work.trained
            ],
            notes=work.notes,
            promoted=promoted,
        )
        held.check()
        self._write(tracked, verdict)
        return verdict

    def _promote(self, trained: Sequence[Trained]) -> list[str]:
        said = []
        for entry in (e for e in self.suite.accuracy if e.model):
            mine = [t for t in trained if t.entry == entry.name]
            if better := register_better(self.experiments[entry.name], self.site, mine):
                version, prefix = better
                self.kept.add(prefix)
                said.append(f"models:/{version.name}/{version.version} registered: {version.decision.reason}")
        return said

    def _write(self, tracked: Run, verdict: Verdict) -> None:
        link = self.place.run_link
        contents = (json.dumps(to_values(verdict), indent=1), markdown(verdict, link), page_of(verdict, link))
        for name, content in zip(FILES, contents, strict=True):
            tracked.text(content, name)
            try:
                write_file(self.folder / name, content.encode())
            except OSError as error:
                self.say(f"{self.folder / name} cannot be written: {error.strerror or error}")
        tracked.description(contents[1][:NOTE_CHARACTERS])

    def _end_left_open(self, nights: Sequence[history.Night], identity: str) -> None:
        """Nights that were killed without a word: this process has the lock, so nobody works on them."""
        for night in (n for n in nights if n.verdict == "running"):
            if night.identity != identity:
                run = Run.attach(self.site.tracking, night.run_id)
                run.tags({history.VERDICT: "interrupted"})
                run.finish("KILLED")
            end_left_open(self.site.tracking, night.identity)
