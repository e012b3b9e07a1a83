"""Is everything in place? Each check looks at one thing, within a time of its own, and says what to do where it is not.

All checks run at once; a place that does not answer costs its own row alone.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.config import Experiment
from pipeline.doctor.finding import Check, Finding, Patient
from pipeline.jobs.profiles import Cluster
from pipeline.site import absolute
from pipeline.tracking.facts import redact
from tood.errors import ToodError


def examine(experiment: Experiment, named: bool, cluster: Cluster | None) -> Iterator[Finding]:
    """Every check's findings, in order, as they come in."""
    # Imported before any clock runs: the limits are for places that do not answer, not for a slow disk.
    import pipeline.tracking.access
    import pipeline.tracking.runs  # noqa: F401
    from pipeline.doctor import machine, places

    patient = Patient(absolute(experiment) if _has_init(experiment) else experiment, named, cluster)
    checks: Sequence[tuple[str, Check, float]] = (
        ("versions", machine.versions, 20),
        ("gpu", machine.gpu, 40),
        ("disk", machine.disk, 10),
        ("ray", places.ray_cluster, 60),
        ("tracking", places.tracking, 120),
        ("storage", places.storage, 60),
        ("data", machine.data, 20),
        ("init", machine.weights, 40),
        ("clock", places.clocks, 20),
    )
    yield from run(patient, checks)


def run(patient: Patient, checks: Sequence[tuple[str, Check, float]]) -> Iterator[Finding]:
    """Run (name, check, seconds it may take) side by side."""
    found: dict[str, list[Finding]] = {}

    def look(name: str, check: Check) -> None:
        begin = time.monotonic()
        try:
            findings = list(check(patient))
        except ToodError as error:
            what, _, do = str(error).rpartition("; ")
            findings = [Finding(name, "problem", what or do, do if what else "")]
        except Exception as error:  # a check must not take the others with it
            said = " ".join(redact(f"{type(error).__name__}: {error}").split())[:300]
            findings = [Finding(name, "problem", said, "this is not expected; check the versions above")]
        seconds = round(time.monotonic() - begin, 2)
        found[name] = [Finding(**asdict(finding) | {"seconds": seconds}) for finding in findings]

    begin = time.monotonic()
    threads = {name: threading.Thread(target=look, args=(name, check), daemon=True) for name, check, _ in checks}
    for thread in threads.values():
        thread.start()
    for name, _, limit in checks:
        threads[name].join(max(0.0, begin + limit - time.monotonic()))
        late = Finding(name, "problem", f"no answer within {limit:g} s", "look at the address, and at what lies between", limit)
        yield from found.get(name, [late])


def _has_init(experiment: Experiment) -> bool:
    """Whether `absolute` will accept the initial weights, about which a check has its own say."""
    init = experiment.init
    return init in ("none", "imagenet") or init.startswith("models:/") or Path(init).expanduser().exists()
