"""The doctor's checks of what lies elsewhere: cluster, tracking, object storage, clocks."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from importlib import metadata
from typing import Any

from pipeline import cluster as fitting
from pipeline.config import Experiment
from pipeline.doctor.finding import Finding, Patient
from pipeline.errors import TrackingError
from pipeline.site import tracking_address
from pipeline.storage.opening import check, open_store
from pipeline.tracking.facts import redact

SKEW_SECONDS = 30, 240  # of clocks: advice, problem. S3 refuses signatures 15 minutes off; leases on pointers last 2
PROBE = "tood-doctor"  # MLflow's experiment that test writes go to: one run, again and again


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
    least = config.workers_min or config.workers
    if need.cpus > has["CPU"] or need.gpus > has["GPU"] or at_once < least:
        yield Finding("ray", "problem", f"a run needs {need.cpus} CPUs and {need.gpus:g} GPUs for {least} workers, "
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
