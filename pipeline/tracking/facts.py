"""What a run says about itself, as plain values: its parameters, the code and the versions that made it. No secrets.

Pure functions; `pipeline.tracking.runs` sends their results to MLflow.
"""

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

# Short name -> where the experiment keeps it. MLflow's compare page preselects the first three parameters that differ,
# in alphabetical order; what often changes together with the head is named to sort after alpha, beta and head.
PARAMS = {
    "alpha": "model.objective.alpha",
    "beta": "model.objective.beta",
    "m": "model.objective.m",
    "head": "model.tower",
    "head_aligner": "model.aligner",
    "head_context": "model.context",
    "head_quality": "model.quality",
    "head_refinement": "model.refinement",
    "detector": "model.detector",
    "objective": "model.objective.name",
    "layers": "model.layers",
    "prior": "model.prior",
    "box": "model.box",
    "channels": "model.channels",
    "groups": "model.groups",
    "depth": "model.backbone.depth",
    "neck": "model.neck.kind",
    "neck_channels": "model.neck.channels",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "schedule": "train.schedule",
    "weight_decay": "train.weight_decay",
    "clip_norm": "train.clip_norm",
    "ema": "train.ema",
    "precision": "train.precision",
    "seed": "train.seed",
    "long_side": "data.long_side",
    "short_side": "data.short_side",
}

COMMIT, DIRTY = "TOOD_COMMIT", "TOOD_DIRTY"  # variables that `pipeline.jobs.submit` sets for a job

_SECRET_WORD = r"(?:password|passwd|secret|(?:secret|access|api)_?key(?:_?id)?|token|authorization)"
_SECRETS = (
    (re.compile(r"(?<=://)[^/\s@'\"]+@"), "***@"),  # scheme://user:password@host
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), "***"),  # AWS access key ids
    (re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-)[\w-]{16,}"), "***"),  # services' own tokens
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), "***"),  # JSON web tokens
    (re.compile(r"(?i)\b(bearer|basic) +[\w.~+/=-]{8,}"), r"\1 ***"),
    (re.compile(r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s]+"), r"\1***"),  # presigned addresses
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL), "***"),
)
_NAMED_SECRET = (  # key: value and KEY=value, where the key's last word is a secret's
    re.compile(rf"(?i)((?:\b|_){_SECRET_WORD}[\"']?\s*[:=]\s*)(?!(?:bearer|basic) )(\"[^\"]*\"|'[^']*'|[^\s,;&]+)"),
    r"\1***",
)
_DATABASE_USER = re.compile(r"(?i)^((?:postgresql|mysql)[\w+]*://)[^:/@\s]+@")
_SECRET_VARIABLE = re.compile(r"(?:SECRET|TOKEN|PASSWORD|PASSWD|ACCESS_KEY|ACCESS_KEY_ID|API_KEY)$")


def redact(text: str) -> str:
    """`text` with *** for credentials: known forms of keys and tokens, and the values of this process's own secrets."""
    return _NAMED_SECRET[0].sub(_NAMED_SECRET[1], redact_known(text))


def redact_known(text: str) -> str:
    """The same without what only stands behind a word such as `token:`, which in our own sentences is no secret."""
    names = [name for name in list(os.environ) if _SECRET_VARIABLE.search(name.upper())]  # other threads may add and remove some
    own = {value for value in map(os.environ.get, names) if value and len(value) >= 8}
    for value in sorted(own, key=len, reverse=True):
        text = text.replace(value, "***")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def carries_credentials(address: str) -> bool:
    """Does an address or a path hold a credential? The name of a database's user, without a password, is none."""
    address = _DATABASE_USER.sub(r"\1", address)
    return redact(address) != address


def flat_params(config: Mapping[str, Any], swept: Iterable[str] = ()) -> dict[str, Any]:
    """Numbers and words of an experiment under short names (`PARAMS`), ready for `Run.params`.

    The objective's further options keep their own names. `swept` names dotted keys that must be there whatever they are
    (a sweep's axes): one that `PARAMS` does not hold is named by its last word, or in full where that word is taken.
    What the configuration does not have is left out.
    """
    flat = {name: _at(config, path) for name, path in PARAMS.items()}
    known = set(PARAMS.values())
    objective = _at(config, "model.objective") or {}
    options = [f"model.objective.{option}" for option in objective]
    for path in [*options, *swept]:
        if path not in known:
            known.add(path)
            word = path.rpartition(".")[2]
            flat[path if flat.get(word) is not None else word] = _at(config, path)
    return {name: value for name, value in flat.items() if isinstance(value, bool | int | float | str)}


def environment_tags() -> dict[str, str]:
    """The commit of the working directory's repository, whether it had changes, and versions. No host, user or path.

    A submitted job runs without a repository and has its commit from the variables `COMMIT` and `DIRTY`.
    """
    tags = {"version.python": platform.python_version()}
    for package in ("torch", "torchvision", "ray", "mlflow"):
        try:
            tags[f"version.{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if commit := os.environ.get(COMMIT):
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": os.environ.get(DIRTY, "no")}
    elif commit := _git("rev-parse", "HEAD"):
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = "yes" if _git("status", "--porcelain", "--untracked-files=no") else "no"
    return tags


def _at(config: Mapping[str, Any], path: str) -> Any:
    for key in path.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return None
        config = config[key]
    return config


def _git(*arguments: str) -> str:
    """What git prints; empty without git, without a repository, or before its first commit."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
