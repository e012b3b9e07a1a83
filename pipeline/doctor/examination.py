"""Is everything in place? Each check looks at one thing, within a time of its own, and says what to do where it is not.

All checks run at once; a place that does not answer costs its own row alone. `pipeline.doctor.machine` looks at this machine,
this file at what lies elsewhere: cluster, tracking, object storage, clocks.
"""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pipeline import cluster as fitting
from pipeline.config import Experiment
from pipeline.errors import TrackingError
from pipeline.jobs.profiles import Cluster
from pipeline.site import absolute, tracking_address
from pipeline.storage.store import check, open_store
from pipeline.tracking.facts import redact
from tood.errors import ToodError

SKEW_SECONDS = 30, 240  # of clocks: advice, problem. S3 refuses signatures 15 minutes off; leases on pointers last 2
PROBE = "tood-doctor"  # MLflow's experiment that test writes go to: one run, again and again


@dataclass(frozen=True)
class Finding:
    check: str
    state: Literal["ok", "problem", "advice"]
    says: str
    do: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Patient:
    """What is examined."""

    experiment: Experiment  # its folders absolute
    named: bool  # by the person; else the defaults
    cluster: Cluster | None

    @property
    def output(self) -> Path:
        return Path(self.experiment.output)


Check = Callable[[Patient], Iterable[Finding]]


def examine(experiment: Experiment, named: bool, cluster: Cluster | None) -> Iterator[Finding]:
    """Every check's findings, in order, as they come in."""
    # Imported before any clock runs: the limits are for places that do not answer, not for a slow disk.
    import pipeline.tracking.access
    import pipeline.tracking.runs  # noqa: F401
    from pipeline.doctor import machine

    patient = Patient(absolute(experiment) if _has_init(experiment) else experiment, named, cluster)
    checks: Sequence[tuple[str, Check, float]] = (
        ("versions", machine.versions, 20),
        ("gpu", machine.gpu, 40),
        ("disk", machine.disk, 10),
        ("ray", ray_cluster, 60),
        ("tracking", tracking, 120),
        ("storage", storage, 60),
        ("data", machine.data, 20),
        ("init", machine.weights, 40),
        ("clock", clocks, 20),
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


def ray_cluster(patient: Patient) -> Iterator[Finding]:
    if patient.cluster:
        from pipeline.jobs.server import JobServer

        profile = patient.cluster.profile
        server = JobServer(profile.jobs, patient.cluster.token())
        nodes = [node["resources"] for node in server.nodes()]
        yield Finding("ray", "ok", f"{profile.jobs}: Ray {server.version}, {_size(nodes)}")
        if server.version != metadata.version("ray"):
            yield Finding("ray", "advice", f"the cluster has Ray {server.version}, this machine {metadata.version('ray')}",
                          "install the cluster's version here: what runs on both must be the same")  # fmt: skip
    elif address := patient.experiment.ray.address:
        nodes = _nodes_of(address)
        yield Finding("ray", "ok", f"{address}: {_size(nodes)}")
    else:
        yield Finding("ray", "ok", f"no address: runs start a Ray of their own on the {os.cpu_count()} cores here")
        return
    if patient.named:
        yield from _fits(patient.experiment, nodes)


def _fits(experiment: Experiment, nodes: Sequence[dict[str, float]]) -> Iterator[Finding]:
    config = experiment.ray
    has = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    gpus = config.gpus_per_worker if config.gpus_per_worker is not None else float(has["GPU"] >= 1)
    need = fitting.demand(config, gpus, fitting.TRIAL_CPUS if experiment.sweep else 0)
    at_once = sum(
        int(min(node.get("CPU", 0) // config.cpus_per_worker, node.get("GPU", 0) // gpus if gpus else 1e9)) for node in nodes
    )
    if need.cpus > has["CPU"] or need.gpus > has["GPU"] or at_once < config.workers:
        yield Finding("ray", "problem", f"a run needs {need.cpus} CPUs and {need.gpus:g} GPUs for {config.workers} workers, "
                      f"the cluster has {has['CPU']:g} and {has['GPU']:g} and room for {at_once}",
                      "lower ray.workers, ray.cpus_per_worker or ray.gpus_per_worker, or add nodes")  # fmt: skip


def tracking(patient: Patient) -> Iterator[Finding]:
    from pipeline.tracking.access import connect, explained, mlflow_client, server_version, sqlite_file
    from pipeline.tracking.runs import Run, experiment_id

    uri = tracking_address(patient.experiment, patient.output)
    if not patient.experiment.tracking.uri and uri.startswith("sqlite") and not sqlite_file(uri).exists():
        yield Finding("tracking", "ok", f"no address: an SQLite file will be made in {patient.output}")
        return
    connect(uri)
    version, own = server_version(uri), metadata.version("mlflow")
    yield Finding("tracking", "ok", f"{redact(uri)}{f': MLflow {version}' if version else ''}")
    if version and version.split(".")[:2] != own.split(".")[:2]:
        yield Finding("tracking", "advice", f"the server has MLflow {version}, this machine {own}", "use one version on both")
    run = Run.open(uri, experiment_id(uri, PROBE), identity="doctor", name="doctor")
    run.metrics({"checked": time.time()}, step=int(time.time()))
    with explained("artifacts"):
        mlflow_client(uri).log_text(run.run_id, "written by tood doctor\n", "probe.txt")
        stored = [item.path for item in mlflow_client(uri).list_artifacts(run.run_id)]
    run.finish()
    if "probe.txt" not in stored:
        raise TrackingError("an artifact that was stored is not listed; look at the server's --artifacts-destination")
    yield Finding("tracking", "ok", f"a metric and an artifact were written (experiment {PROBE})")


def storage(patient: Patient) -> Iterator[Finding]:
    url = patient.experiment.storage.url
    if not url:
        yield Finding("storage", "ok", f"no address: checkpoints will lie in {patient.output / 'store'}")
        return
    check(open_store(url))
    yield Finding("storage", "ok", f"{url}: writes, lists, deletes, and honours conditional writes")


def clocks(patient: Patient) -> Iterator[Finding]:
    """This machine's clock beside those that the servers put into their answers."""
    import requests

    addresses = [patient.cluster.profile.jobs if patient.cluster else "", tracking_address(patient.experiment, patient.output)]
    if patient.experiment.storage.url.startswith("s3://"):
        addresses.append(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com")
    worst = None
    for address in addresses:
        if not address.startswith("http"):
            continue
        try:
            sent = requests.head(address, timeout=5).headers.get("Date")
            skew = time.time() - parsedate_to_datetime(sent).timestamp()
        except (requests.RequestException, TypeError, ValueError):
            continue  # whether it can be reached is another check's
        worst = max(worst or (0.0, ""), (abs(skew), address))
    if worst is None:
        return
    state = "problem" if worst[0] > SKEW_SECONDS[1] else "advice" if worst[0] > SKEW_SECONDS[0] else "ok"
    do = "" if state == "ok" else "set the clocks by NTP: signatures of requests and turns at a checkpoint depend on them"
    yield Finding("clock", state, f"{worst[0]:.0f} s from {redact(worst[1])}", do)


def render(finding: Finding, width: int = 100) -> str:
    """A finding as lines of at most `width` columns."""
    head = f"{finding.state:<8} {finding.check:<9} "
    text = textwrap.fill(finding.says, width, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
    if finding.do:
        do = textwrap.fill(finding.do, width, initial_indent=" " * len(head) + "-> ", subsequent_indent=" " * (len(head) + 3))
        text = f"{text}\n{do}"
    return text


def _size(nodes: Sequence[dict[str, float]]) -> str:
    total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    return f"{len(nodes)} node{'s' if len(nodes) != 1 else ''} with {total['CPU']:g} CPUs and {total['GPU']:g} GPUs"


_ASK = """
import json, sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(json.dumps([node["Resources"] for node in ray.nodes() if node["Alive"]]))
"""


def _nodes_of(address: str) -> list[dict[str, Any]]:
    """The resources of a cluster's nodes, asked by a process of its own: a session of Ray belongs to a main thread."""
    from pipeline.errors import ClusterError

    try:
        done = subprocess.run([sys.executable, "-c", _ASK, address], capture_output=True, text=True, timeout=50)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"ray.address: {address} does not answer; check that the cluster runs") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ClusterError(f"ray.address: {address} cannot be used ({redact(said)[:200]}); check that the cluster runs")
    return json.loads(done.stdout.splitlines()[-1])


def _has_init(experiment: Experiment) -> bool:
    """Whether `absolute` will accept the initial weights, about which a check has its own say."""
    init = experiment.init
    return init in ("none", "imagenet") or init.startswith("models:/") or Path(init).expanduser().exists()
