"""Any verb as a Ray job: what it is called, what travels with it, and what it is told. The same work twice is the same job.

A job's id is made of verb, experiment and the hash of what decides its results. Its folder on the cluster is the profile's,
so relative paths mean the same for every job; the code that it brings, and its experiment, lie in a folder of Ray's.
Nothing secret travels: a job has its credentials from the nodes.
"""

import argparse
import json
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import yaml

from pipeline.arguments import Parser, children
from pipeline.config import Experiment, experiment_of, merge
from pipeline.errors import ClusterError
from pipeline.experiment_files import load_values, parse_overrides
from pipeline.jobs.package import Package, megabytes, pack, project_root
from pipeline.jobs.profiles import Cluster
from pipeline.jobs.server import Job, JobServer
from pipeline.tracking.facts import COMMIT, DIRTY, redact
from tood.config import hash_of, to_dict
from tood.errors import ConfigError, ToodError
from tood.plain_yaml import read_yaml_text

AT_HOME = ("submit", "jobs", "ui", "completion")  # verbs that make no sense on a cluster
STOP_SECONDS = 60  # that a stopped job has to end its trials and say so to MLflow; Ray's own is 3
_NO_IDENTITY = ("run", "verb", "settings", "set", "experiment", "json", "resume", "cluster", "profiles")


@dataclass(frozen=True)
class Submission:
    id: str  # of the first attempt
    entrypoint: str
    environment: dict[str, str]
    metadata: dict[str, str]
    package: Package
    resumes: bool = False  # goes on with earlier work, and so is an attempt of its own

    def runtime_env(self, working_dir: str) -> dict:
        return {"env_vars": self.environment} | ({"working_dir": working_dir} if working_dir else {})


def plan(parser: Parser, words: Sequence[str], cluster: Cluster, excludes: Iterable[str] = ()) -> Submission:
    """What `words`, a verb with its arguments, would run on a cluster. Raises ToodError for what the verb itself would refuse."""
    path = _verb(parser, words)
    if path[0] in AT_HOME:
        raise ToodError(f"tood {path[0]}: is for this machine; use it here, or submit what trains, sweeps or evaluates")
    options = parser.parse_args(list(words))
    told = _settings(options)
    name = _experiment_name(options)
    values = load_values(name) if name else {}
    experiment = experiment_of(merge(values, parse_overrides([*cluster.job_settings(), *told])))

    made, arguments = {}, []
    for word in words[len(path) :]:
        if word in told and word in getattr(options, "settings", ()):
            continue
        if name and word in (name, f"--experiment={name}"):
            file = f"{Path(name).stem}.yaml"
            made[file] = yaml.safe_dump(values, sort_keys=False).encode()
            arguments += ["--experiment", _carried(file)] if word != name else [_carried(file)]
        elif (file := _local_yaml(word)) is not None:
            content = _whole_yaml(file, suite=path[0] == "nightly")
            if made.setdefault(file.name, content) != content:
                raise ConfigError(f"tood submit: {file}: another file of this name travels, too; rename one of the two")
            option = f"{shlex.quote(word.partition('=')[0])}=" if word.startswith("--") else ""
            arguments.append(option + _carried(file.name))
        else:
            arguments.append(shlex.quote(word))
    if hasattr(options, "settings"):
        arguments += [shlex.quote(word) for word in (*cluster.job_settings(), *told)]
    elif hasattr(options, "set"):
        arguments = [shlex.quote(f"--set={word}") for word in cluster.job_settings()] + arguments
    command = " ".join([*path, *arguments])
    identity = _identity(path, options, experiment, command)
    parts = [*path, *([experiment.name] if name else []), identity]
    commit, dirty = _commit()
    carries = cluster.profile.code == "carry"
    own = {"tood.code": "carried", "tood.commit": commit, "tood.dirty": dirty} if carries else {"tood.code": "installed"}
    facts = {
        "tood.verb": " ".join(path),
        "tood.experiment": experiment.name if name else "",
        "tood.hash": identity,
        "tood.version": metadata.version("tood"),
        "tood.command": f"tood {shlex.join(words)}",
        **own,
    }
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)} | cluster.job_environment()
    if carries and commit:
        environment |= {COMMIT: commit, DIRTY: dirty}
    submission = Submission(
        id="-".join(re.sub(r"[^A-Za-z0-9_.-]", "-", part) for part in parts),
        entrypoint=_entrypoint(cluster, command),
        environment=environment,
        metadata={key: value for key, value in facts.items() if value},
        package=pack(carries, made, excludes),
        resumes=bool(getattr(options, "resume", False)),
    )
    _refuse_secrets(submission)
    return submission


def start(server: JobServer, submission: Submission, *, again: bool = False) -> tuple[str, bool]:
    """Submit, or find the same job. (its id, whether it was started now). Raises ClusterError where it has failed before."""
    earlier = sorted((job for job in server.jobs() if attempt(submission.id, job.id)), key=lambda j: attempt(submission.id, j.id))
    number = 1
    if earlier:
        last = earlier[-1]
        number = attempt(submission.id, last.id) + 1
        if not last.over:
            if again:
                raise ClusterError(f"{last.id}: is {last.status.lower()}; `tood jobs stop {last.id}` first, or leave out --again")
            return last.id, False
        if not again and not submission.resumes:
            if last.status == "SUCCEEDED":
                return last.id, False
            raise ClusterError(f"{last.id}: {ended(last)}; see `tood jobs logs {last.id}`, and add --again to run it once more")
    job_id = submission.id if number == 1 else f"{submission.id}-{number}"
    with tempfile.TemporaryDirectory(prefix="tood-job-") as folder:
        submission.package.write(Path(folder))
        filled = folder if submission.package.files or submission.package.made else ""
        facts = submission.metadata | {"tood.attempt": str(number)}
        return job_id, server.submit(job_id, submission.entrypoint, submission.runtime_env(filled), facts)


def preflight(submission: Submission, say: Callable[[str], None]) -> None:
    """Say what travels."""
    package = submission.package
    sizes = package.sizes()
    commit = submission.metadata.get("tood.commit", "")
    changed = " with changes" if submission.metadata.get("tood.dirty") == "yes" else ""
    code = f"commit {commit[:10]}{changed}" if commit else "the code that is installed there" if not package.files else "no commit"
    say(f"job {submission.id}: carries {len(sizes)} file{'s' if len(sizes) != 1 else ''}, {megabytes(sum(sizes.values()))}; {code}")
    if package.left_out:
        shown = ", ".join(package.left_out[:3]) + (", ..." if len(package.left_out) > 3 else "")
        say(f"  left out, as git does not track them: {shown}")


def attempt(base: str, job_id: str) -> int:
    """1 for the job `base` itself, n for `base`-n, 0 for other jobs."""
    if job_id == base:
        return 1
    number = job_id.removeprefix(f"{base}-")
    return int(number) if number != job_id and number.isdecimal() and len(number) < 6 else 0


def ended(job: Job) -> str:
    ago = f" {duration(time.time() - job.ended)} ago" if job.ended else ""
    return f"{job.status.lower()}{ago}"


def duration(seconds: float) -> str:
    """3725 -> "1 h 2 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} days"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _verb(parser: Parser, words: Sequence[str]) -> list[str]:
    """The leading words that name a verb: ["train"] or ["data", "check"]."""
    path: list[str] = []
    while (known := children(parser)) and len(path) < len(words) and words[len(path)] in known:
        parser = known[words[len(path)]]
        path.append(words[len(path)])
    if not path:
        raise ToodError(f"tood submit: give a verb and its arguments, such as `train demo`, not {' '.join(words[:1])!r}")
    return path


def _settings(options: argparse.Namespace) -> list[str]:
    return [word for word in [*getattr(options, "settings", ()), *getattr(options, "set", ())] if "=" in word]


def _experiment_name(options: argparse.Namespace) -> str | None:
    named = [word for word in getattr(options, "settings", ()) if "=" not in word]
    return getattr(options, "experiment", None) or (named[0] if named else None)


def _local_yaml(word: str) -> Path | None:
    """The YAML file of this machine that a word names, by itself or as --option=FILE."""
    name = word.partition("=")[2] if word.startswith("--") else word
    return Path(name) if name.endswith((".yaml", ".yml")) and Path(name).is_file() else None


def _whole_yaml(file: Path, suite: bool) -> bytes:
    """A file as it has to travel: with what it extends, which may lie beside it here and nowhere else. Raises ConfigError."""
    values = load_values(str(file))
    entries = [entry for kind in ("accuracy", "speed") for entry in values.get(kind) or [] if suite and isinstance(entry, dict)]
    for entry in entries:
        name = str(entry.get("experiment", ""))
        if name.endswith((".yaml", ".yml")) and not Path(name).is_absolute() and Path(name).is_file():
            raise ConfigError(
                f"tood submit: {file}, entry {entry.get('name')}: its experiment {name} is a file of this machine and does not "
                "travel; name a shipped experiment with `settings`, or a file by its whole path on the cluster"
            )
    if "extends" in yaml.safe_load(read_yaml_text(file)):
        return yaml.safe_dump(values, sort_keys=False).encode()
    return file.read_bytes()


def _identity(path: list[str], options: argparse.Namespace, experiment: Experiment, command: str) -> str:
    """The hash of what a job will do: of training and sweeps what decides their results, of all else every word."""
    if path[0] not in ("train", "sweep"):
        return hash_of([command, to_dict(experiment)])
    others = {key: value for key, value in vars(options).items() if key not in _NO_IDENTITY}
    search = to_dict(experiment.sweep) if path[0] == "sweep" else None
    return hash_of([experiment.hash, search, json.loads(json.dumps(others, default=str))])


def _carried(file: str) -> str:
    return f'"$OLDPWD"/{shlex.quote(file)}'


def _entrypoint(cluster: Cluster, command: str) -> str:
    """A line of shell: go to the profile's folder, and run the command by the code that was carried."""
    folder = cluster.profile.folder or "~/tood"
    quoted = f'"$HOME"/{shlex.quote(folder[2:])}' if folder.startswith("~/") else shlex.quote(folder)
    python = shlex.quote(cluster.profile.python)
    path = 'PYTHONPATH="$OLDPWD" ' if cluster.profile.code == "carry" else ""
    return f"mkdir -p {quoted} && cd {quoted} && {path}exec {python} -P -m pipeline.cli {command}"


def _commit() -> tuple[str, str]:
    """The checkout's commit and whether it has changes; empty where the code is no checkout."""
    root = project_root()
    if not (root / ".git").exists():
        return "", ""
    answers = []
    for question in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", "-C", str(root), *question], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return "", ""
        answers.append(done.stdout.strip())
    return (answers[0], "yes" if answers[1] else "no") if answers[0] else ("", "")


def _refuse_secrets(submission: Submission) -> None:
    """Whatever is sent can be read by everybody who sees the cluster's dashboard."""
    texts = {"command": submission.entrypoint, **submission.metadata, **submission.environment}
    made = {name: content.decode() for name, content in (submission.package.made or {}).items()}
    for where, text in {**texts, **made}.items():
        if redact(text) != text:
            raise ConfigError(f"tood submit: {where} holds a credential, which everybody with access to the cluster could read; "
                              "let the nodes have it in their environment")  # fmt: skip
