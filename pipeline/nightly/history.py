"""Earlier nights of a suite, read back from MLflow, and which of their figures tonight's may be compared with.

Comparable is what came of the same suite's entry with the same configuration on the same kind of machine, and passed: a failed
night is never what later ones are judged by.
"""

import json
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.nightly.judge import Figure
from pipeline.tracking.past_runs import runs_tagged

KIND = "nightly"  # of tood.kind
SUITE, NIGHT, VERDICT, CODE, MACHINE, ENTRIES, IDENTITY, BEGUN = (
    f"tood.{name}" for name in ("suite", "night", "verdict", "code", "machine", "entries", "night_identity", "begun")
)
OF_NIGHT = "tood.of_night"  # tag of a training: its night's identity
NOISE = ".noise"  # ending of the metric that holds a figure's noise
FINAL = ("passed", "failed")
TREND = 30  # nights that a plot shows


class Night(NamedTuple):
    run_id: str
    identity: str
    night: str  # 2026-11-21
    verdict: str  # passed, failed, error, running, interrupted
    commit: str
    code: str
    machine: str
    entries: dict[str, str]  # name -> hash
    metrics: dict[str, float]
    begun: float


def read_nights(uri: str, suite: str) -> list[Night]:
    """Every night of a suite that MLflow knows, in order."""
    runs = (run for run in runs_tagged(uri, SUITE, suite) if run.tags.get("tood.kind") == KIND)
    nights = [
        Night(
            run.run_id,
            run.tags.get(IDENTITY, ""),
            run.tags.get(NIGHT, ""),
            run.tags.get(VERDICT, ""),
            run.tags.get("mlflow.source.git.commit", ""),
            run.tags.get(CODE, ""),
            run.tags.get(MACHINE, ""),
            _entries(run.tags.get(ENTRIES)),
            run.metrics,
            float(run.tags.get(BEGUN, "0")),
        )
        for run in runs
    ]
    return sorted(nights, key=lambda n: (n.night, n.begun))


def before(nights: Sequence[Night], night: str, run_id: str) -> list[Night]:
    """The nights that had a verdict before this one."""
    return [n for n in nights if n.run_id != run_id and n.verdict in FINAL and n.night <= night]


def figures(nights: Sequence[Night], entry: str, entry_hash: str, machine: str, metric: str, count: int) -> list[Figure]:
    """What earlier passed nights measured of a metric, comparable with tonight's, oldest first."""
    passed = [n for n in alike(nights, entry, entry_hash, machine) if n.verdict == "passed"]
    return [Figure(n.metrics[metric], n.metrics.get(metric + NOISE, float("nan")), count) for n in passed if metric in n.metrics]


def alike(nights: Sequence[Night], entry: str, entry_hash: str, machine: str) -> list[Night]:
    return [n for n in nights if n.machine == machine and n.entries.get(entry) == entry_hash]


def trend(nights: Sequence[Night], metric: str) -> list[dict[str, Any]]:
    """A metric over nights, failed ones too, for a plot."""
    return [
        {"night": n.night, "commit": n.commit, "verdict": n.verdict, "value": n.metrics[metric], "run_id": n.run_id}
        for n in nights
        if metric in n.metrics
    ][-TREND:]


def last_passed(nights: Sequence[Night]) -> Night | None:
    return next((n for n in reversed(nights) if n.verdict == "passed"), None)


def machine_kind() -> str:
    """Model and number of what computes here: machines of one kind give comparable timings."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return " + ".join([f"{' '.join(model.split())}, {cores} cores", *(f"{gpus.count(g)} x {g}" for g in dict.fromkeys(gpus))])


def _entries(text: str | None) -> dict[str, str]:
    with suppress(ValueError, TypeError):
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}
