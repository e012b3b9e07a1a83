"""Which commit made a metric fail: a binary search that runs each commit's own code in a worktree of its own.

The working tree is not touched. Both ends are measured first: a search between two states that do not differ would name a commit
for nothing. A commit that does not run is passed over; if the search ends beside some of these, all of them are named. A first
end that does not run is taken at its word.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from pipeline.jobs.package import project_root
from pipeline.nightly.code import Commit, git
from pipeline.nightly.judge import Judged, number
from pipeline.nightly.suite import Suite, suite_values
from pipeline.nightly.verdict import Verdict
from pipeline.tracking.facts import COMMIT, DIRTY
from tood.errors import ConfigError

LAST_PASSED = "last-passed"
State = Literal["good", "bad", "skipped"]


class Step(NamedTuple):
    commit: str
    state: State
    said: str


class Found(NamedTuple):
    """The end of a search. One culprit: it is the first bad commit; several: it is one of them; none: see `said`."""

    culprits: tuple[Commit, ...]
    said: str
    steps: tuple[Step, ...]


def search(count: int, test: Callable[[int], State]) -> list[int]:
    """Of positions 0 .. count - 1, oldest first, where the state before 0 is good and the last is bad: which may be the first bad.

    `test` is asked about the middle, and about its neighbours where the middle is skipped.
    """
    good, bad, skipped = -1, count - 1, set()
    while candidates := [i for i in range(good + 1, bad) if i not in skipped]:
        middle = (good + bad) // 2
        position = min(candidates, key=lambda i: abs(i - middle))
        state = test(position)
        if state == "good":
            good = position
        elif state == "bad":
            bad = position
        else:
            skipped.add(position)
    return list(range(good + 1, bad + 1))


def bisect(suite: Suite, settings: Sequence[str], verdict: Verdict, since: str, say: Callable[[str], None]) -> Found:
    """Search the commits after `since` (a commit, or LAST_PASSED) for the first that fails what the night failed.

    Raises ConfigError where there is no repository, or `since` is no ancestor.
    """
    root = project_root()
    first, last = _ends(root, verdict, since)
    lines = git(root, "log", "--reverse", "--first-parent", "--format=%H%x09%as%x09%s", f"{first}..{last}") or ""
    commits = [Commit(*line.split("\t", 2)) for line in lines.splitlines()]
    failed = verdict.failed
    say(f"bisecting {', '.join(j.metric for j in failed)} over {len(commits)} commits since {first[:10]}")
    steps: list[Step] = []
    with tempfile.TemporaryDirectory(prefix="tood-bisect-") as scratch:
        file = Path(scratch) / f"{suite.name}.yaml"
        file.write_text(yaml.safe_dump(suite_values(suite), sort_keys=False))
        limit = 600 + 180 * verdict.minutes

        def measured(commit: str) -> State:
            with worktree(root, commit, Path(scratch)) as tree:
                state, said = judge_commit(tree, str(file), settings, failed, limit)
            steps.append(Step(commit, state, said))
            say(f"{commit[:10]}  {state:<8} {said}")
            return state

        if (newest := measured(last)) != "bad":
            why = "the changes of the working tree that no commit holds" if verdict.dirty and newest == "good" else ""
            return Found(
                (), why or f"{last[:10]} does not fail here ({steps[-1].said}), so there is nothing to search", tuple(steps)
            )
        if measured(first) == "bad":
            why = f"{first[:10]} is not good either ({steps[-1].said}): the cause is older, or not in the code"
            return Found((), why, tuple(steps))
        culprits = [commits[i] for i in search(len(commits), lambda i: measured(commits[i].id))]
    if len(culprits) == 1:
        return Found(tuple(culprits), f"first bad commit: {culprits[0].id[:10]} {culprits[0].subject}", tuple(steps))
    return Found(tuple(culprits), f"one of {len(culprits)} commits; those between could not be measured", tuple(steps))


def judge_commit(tree: Path, suite: str, settings: Sequence[str], failed: Sequence[Judged], seconds: float) -> tuple[State, str]:
    """Measure in a checkout what failed, and say whether it fails there. Slow figures are measured twice."""
    found, said = measure_in(tree, suite, failed, settings, seconds)
    if found is None:
        return "skipped", said
    bad = [j for j in failed if fails(j, found.get(j.metric))]
    if bad and all(j.kind == "speed" and found.get(j.metric) is not None for j in bad):
        again, _ = measure_in(tree, suite, bad, settings, seconds)
        found = found | {m: min(v, found[m]) for m, v in (again or {}).items() if v is not None and found.get(m) is not None}
        bad = [j for j in bad if fails(j, found.get(j.metric))]
    values = (f"{j.metric} {'-' if found.get(j.metric) is None else number(found[j.metric])}" for j in failed)
    return ("bad" if bad else "good"), ", ".join(values)


def fails(judged: Judged, value: float | None) -> bool:
    """Whether a commit's figure would have failed the night too."""
    if value is None:
        return True
    low, high = judged.passes
    return (low is not None and value < low) or (high is not None and value > high)


def measure_in(
    tree: Path, suite: str, failed: Sequence[Judged], settings: Sequence[str], seconds: float
) -> tuple[dict[str, float | None] | None, str]:
    """`tood nightly SUITE --measure METRIC` by a checkout's own code: figures, None for a metric without; or why there are none."""
    command = [sys.executable, "-P", "-m", "pipeline.cli", "nightly", suite]
    command += [word for judged in failed for word in ("--measure", judged.metric)] + ["--json", *settings]
    environment = {key: value for key, value in os.environ.items() if key not in (COMMIT, DIRTY)} | {"PYTHONPATH": str(tree)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, f"took longer than {seconds / 60:.0f} min"
    lines = done.stdout.strip().splitlines()
    try:
        return {row["metric"]: row["value"] for row in json.loads(lines[-1])["measured"]}, ""
    except (ValueError, KeyError, TypeError, IndexError):
        said = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        return None, f"does not run: {said}"


@contextmanager
def worktree(root: Path, commit: str, scratch: Path) -> Iterator[Path]:
    """A commit's files beside the repository, gone at the end; the folder that holds its packages."""
    tree = scratch / commit[:12]
    if git(root, "worktree", "add", "--detach", "--force", str(tree), commit, seconds=600) is None:
        raise ConfigError(f"commit {commit[:10]} cannot be checked out beside the repository; is there room in {scratch.parent}?")
    try:
        yield tree / (git(root, "rev-parse", "--show-prefix") or "")
    finally:
        git(root, "worktree", "remove", "--force", str(tree), seconds=600)
        git(root, "worktree", "prune")


def _ends(root: Path, verdict: Verdict, since: str) -> tuple[str, str]:
    if not verdict.commit or git(root, "cat-file", "-e", f"{verdict.commit}^{{commit}}") is None:
        raise ConfigError("--since: needs the git repository of the code that ran; run it in a checkout")
    if since == LAST_PASSED:
        first = verdict.since.get("commit", "")
        if not first:
            raise ConfigError("--since last-passed: no night of this suite has passed with a commit; name a commit")
    else:
        first = git(root, "rev-parse", "--verify", "--quiet", f"{since}^{{commit}}") or ""
        if not first:
            raise ConfigError(f"--since: {since!r} is no commit of {root}; give one, or last-passed")
    if git(root, "merge-base", "--is-ancestor", first, verdict.commit) is None or (first == verdict.commit and not verdict.dirty):
        raise ConfigError(f"--since: {first[:10]} does not come before {verdict.commit[:10]}, the night's commit")
    return first, verdict.commit
