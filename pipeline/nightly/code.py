"""Which code a night ran: its commit, whether the working tree differs from it, and the commits since another one."""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.jobs.package import PARTS, project_root
from pipeline.tracking.facts import COMMIT, DIRTY

SHOWN_COMMITS = 200


class Code(NamedTuple):
    commit: str  # "": no git here, and no job that said
    dirty: bool  # the working tree has changes that no commit holds
    name: str  # tells any two states of the code apart: the commit, with a digest of the sources where it is not all there is


class Commit(NamedTuple):
    id: str  # 40 digits
    date: str  # 2026-11-21
    subject: str


class Between(NamedTuple):
    """The commits after one night's up to another's, newest first; `said` where there is more or less to know."""

    commits: tuple[Commit, ...]
    said: str = ""


def current_code(root: Path | None = None) -> Code:
    """Of the running code. A submitted job has no repository and is told its commit."""
    root = root or project_root()
    if told := os.environ.get(COMMIT):
        dirty = os.environ.get(DIRTY) == "yes"
        return Code(told, dirty, _name(root, told, dirty))
    if git(root, "ls-files", "--error-unmatch", "pipeline/cli.py") is None:  # some other project's repository around a venv
        return Code("", False, _name(root, "", False))
    commit = git(root, "rev-parse", "HEAD") or ""
    dirty = bool(git(root, "status", "--porcelain", "--", *PARTS))
    return Code(commit, dirty, _name(root, commit, dirty))


def commits_between(first: str, last: str, root: Path | None = None) -> Between:
    """The commits that `last` has and `first` has not."""
    root = root or project_root()
    if not first or not last:
        return Between((), "which commits lie between is not known: one of the nights ran without git")
    if first == last:
        return Between((), "the same commit as then")
    for commit in (first, last):
        if git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
            return Between((), f"commit {commit[:10]} is not in the repository here, so those between are not known")
    lines = git(root, "log", "--format=%H%x09%as%x09%s", f"{first}..{last}")
    commits = [Commit(*line.split("\t", 2)) for line in (lines or "").splitlines()]
    said = ""
    if git(root, "merge-base", "--is-ancestor", first, last) is None:
        said = f"commit {first[:10]} is no ancestor of {last[:10]}: these are the commits that the former has not"
    if len(commits) > SHOWN_COMMITS:
        said = f"the newest {SHOWN_COMMITS} of {len(commits)}"
    return Between(tuple(commits[:SHOWN_COMMITS]), said)


def git(root: Path, *arguments: str, seconds: float = 60) -> str | None:
    """What git prints; None without git or where it refuses."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _name(root: Path, commit: str, dirty: bool) -> str:
    if commit and not dirty:
        return commit
    return f"{commit[:12]}.{digest(root)}" if commit else f"code-{digest(root)}"


def digest(root: Path, parts: Sequence[str] = PARTS) -> str:
    """Twelve hex digits of all sources and experiments."""
    total = hashlib.sha256()
    for part in parts:
        for path in sorted((root / part).rglob("*")):
            if path.suffix in (".py", ".yaml") and path.is_file():
                total.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:12]
