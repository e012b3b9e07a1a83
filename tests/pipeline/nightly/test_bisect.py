"""The search for the first bad commit: on positions, and on a repository whose commits print figures instead of training."""

import subprocess
from pathlib import Path

import pytest

from pipeline.nightly import bisect as module
from pipeline.nightly.bisect import bisect, fails, search
from pipeline.nightly.code import commits_between, current_code, digest
from pipeline.nightly.judge import Judged
from pipeline.nightly.suite import Suite
from pipeline.nightly.verdict import Verdict
from tood.config import build
from tood.errors import ConfigError

SUITE = build(
    Suite, {"name": "s", "accuracy": [{"name": "e", "experiment": "demo"}], "speed": [{"name": "t", "experiment": "demo"}]}
)
FELL = Judged("e/val/AP", "accuracy", "failed", 0.0, before=0.3, nights=2, low=0.25, high=0.35)
SLOWED = Judged("t/loader", "speed", "failed", 2.0, before=1.0, nights=2, low=0.7, high=1.4)
PROGRAM = """import json
print(json.dumps({{"measured": [{{"metric": "e/val/AP", "value": {accuracy}}}, {{"metric": "t/loader", "value": {loader}}}]}}))
"""


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 100])
def test_every_first_bad_position_is_found_in_few_steps(count):
    for first_bad in range(count):
        asked: list[int] = []

        def test(i: int, first_bad: int = first_bad, asked: list = asked) -> str:
            asked.append(i)
            return "bad" if i >= first_bad else "good"

        assert search(count, test) == [first_bad]
        assert len(asked) <= count.bit_length()


def test_what_cannot_be_measured_is_passed_over_and_named_where_it_matters():
    def test(i: int) -> str:
        return "skipped" if i in (4, 5) else "bad" if i >= 5 else "good"

    assert search(10, test) == [4, 5, 6]
    assert search(10, lambda i: "skipped") == list(range(10))
    assert search(10, lambda i: "skipped" if i == 4 else "bad" if i >= 8 else "good") == [8]


def test_a_figure_fails_by_the_bounds_of_the_night():
    assert fails(FELL, 0.24)
    assert fails(FELL, None)
    assert not fails(FELL, 0.26)
    assert fails(SLOWED, 1.5)
    assert not fails(SLOWED, 0.1)
    assert not fails(Judged("e/val/AP", "accuracy", "failed", None), 0.1)  # it had vanished, here it is


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """Commits whose `python -m pipeline.cli` prints figures: 0 good, 1 good, 2 broken, 3 bad, 4 bad and slow."""
    root = tmp_path / "repository"
    (root / "pipeline").mkdir(parents=True)
    (root / "pipeline/__init__.py").touch()
    git(root, "init", "-q", "-b", "main")
    for number, (accuracy, loader) in enumerate([(0.3, 1), (0.31, 1), (None, None), (0.0, 1), (0.0, 2)]):
        text = PROGRAM.format(accuracy=accuracy, loader=loader) if accuracy is not None else "raise SystemExit('broken')"
        (root / "pipeline/cli.py").write_text(f"# {number}\n{text}")
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", f"commit {number}")
    monkeypatch.setattr(module, "project_root", lambda: root)
    return root


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True, text=True).stdout.strip()


def verdict(root: Path, *judged: Judged, dirty: bool = False) -> Verdict:
    since = {"night": "2026-11-01", "commit": git(root, "rev-parse", "HEAD~4"), "run_id": "r"}
    return Verdict("s", "2026-11-02", "failed", commit=git(root, "rev-parse", "HEAD"), dirty=dirty, judged=judged, since=since)


def test_the_first_bad_commit_is_named_with_those_that_do_not_run(repository):
    said: list[str] = []
    found = bisect(SUITE, [], verdict(repository, FELL), "last-passed", said.append)
    assert [c.subject for c in found.culprits] == ["commit 2", "commit 3"]
    assert "one of 2 commits; those between could not be measured" in found.said
    assert any("skipped" in line and "does not run: broken" in line for line in said)
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_slow_one_is_timed_again_and_named(repository):
    found = bisect(SUITE, [], verdict(repository, SLOWED), "HEAD~2", lambda line: None)
    assert found.said.startswith("first bad commit: ")
    assert found.said.endswith("commit 4")


def test_ends_that_do_not_differ_are_not_searched(repository):
    older = bisect(SUITE, [], verdict(repository, FELL), "HEAD~1", lambda line: None)
    assert "the cause is older, or not in the code" in older.said
    git(repository, "reset", "-q", "--hard", "HEAD~3")
    fine = Verdict("s", "2026-11-02", "failed", commit=git(repository, "rev-parse", "HEAD"), dirty=True, judged=(FELL,))
    assert bisect(SUITE, [], fine, "HEAD~1", lambda line: None).said == "the changes of the working tree that no commit holds"


def test_what_is_no_ancestor_or_no_commit_is_refused(repository):
    for since, said in (("nothing", "is no commit of"), ("HEAD", "does not come before")):
        with pytest.raises(ConfigError, match=said):
            bisect(SUITE, [], verdict(repository, FELL), since, lambda line: None)
    with pytest.raises(ConfigError, match="no night of this suite has passed"):
        bisect(
            SUITE,
            [],
            Verdict("s", "n", "failed", commit=git(repository, "rev-parse", "HEAD"), judged=(FELL,)),
            "last-passed",
            print,
        )
    with pytest.raises(ConfigError, match="needs the git repository"):
        bisect(SUITE, [], Verdict("s", "n", "failed", judged=(FELL,)), "last-passed", print)


def test_commits_between_are_listed_newest_first_and_what_is_not_known_is_said(repository):
    first, last = git(repository, "rev-parse", "HEAD~2"), git(repository, "rev-parse", "HEAD")
    between = commits_between(first, last, repository)
    assert [c.subject for c in between.commits] == ["commit 4", "commit 3"]
    assert not between.said
    assert "the same commit" in commits_between(last, last, repository).said
    assert "no ancestor" in commits_between(last, first, repository).said
    assert "is not in the repository" in commits_between("0" * 40, last, repository).said
    assert "without git" in commits_between("", last, repository).said


def test_code_is_named_by_its_commit_and_by_what_no_commit_holds(repository, tmp_path, monkeypatch):
    clean = current_code(repository)
    assert clean == (git(repository, "rev-parse", "HEAD"), False, clean.commit)
    (repository / "pipeline/more.py").write_text("1")
    dirty = current_code(repository)
    assert dirty.dirty
    assert dirty.name.startswith(f"{clean.commit[:12]}.")
    (repository / "pipeline/more.py").write_text("2")
    assert current_code(repository).name != dirty.name
    (tmp_path / "installed/pipeline").mkdir(parents=True)
    bare = current_code(tmp_path / "installed")
    assert bare == ("", False, f"code-{digest(tmp_path / 'installed')}")
    monkeypatch.setenv("TOOD_COMMIT", "a" * 40)
    assert current_code(tmp_path / "installed") == ("a" * 40, False, "a" * 40)
