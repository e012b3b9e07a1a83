"""The doctor's checks of what lies elsewhere: cluster, tracking, object storage, clocks."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from importlib import metadata

from pipeline.capacity import Reach, at_once, demand, fitting_now, gpus_each
from pipeline.cluster import TRIAL_CPUS
from pipeline.config import Experiment
from pipeline.doctor.finding import Finding, Patient
from pipeline.errors import ClusterError, TrackingError
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
        nodes = server.nodes()
        # A job server does not tell of an autoscaler; a head without CPUs says that somebody brings nodes with them.
        grows = len(nodes) == 1 and nodes[0]["head"] and not nodes[0]["resources"].get("CPU")
        reach = Reach([node["resources"] for node in nodes], grows=grows)
        yield Finding("ray", "ok", f"{profile.jobs}: Ray {server.version}, {_size(reach)}")
        if server.version != metadata.version("ray"):
            yield Finding("ray", "advice", f"the cluster has Ray {server.version}, this machine {metadata.version('ray')}",
                          "install the cluster's version here: what runs on both must be the same")  # fmt: skip
    elif address := patient.experiment.ray.address:
        reach = _reach_of(address)
        yield Finding("ray", "ok", f"{address}: {_size(reach)}")
    else:
        yield Finding("ray", "ok", f"no address: runs start a Ray of their own on the {os.cpu_count()} cores here")
        return
    if patient.named:
        yield from _fits(patient.experiment, reach)


def _fits(experiment: Experiment, reach: Reach) -> Iterator[Finding]:
    need = demand(experiment.ray, gpus_each(experiment.ray, reach), TRIAL_CPUS if experiment.sweep else 0)
    if fitting_now(need, reach.nodes):
        return
    try:
        at_once(need, reach, 1)
    except ClusterError as error:
        what, _, do = str(error).rpartition("; ")
        yield Finding("ray", "problem", what, do)
        return
    yield Finding("ray", "advice", f"no run fits as the cluster is now: one needs {need.cpus} CPUs and {need.gpus:g} GPUs",
                  "nodes have to come first: see that the autoscaler may bring so many")  # fmt: skip


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


def _size(reach: Reach) -> str:
    now = reach._replace(at_most=None)
    nodes = f"{len(now.nodes)} node{'s' if len(now.nodes) != 1 else ''}"
    return f"{nodes} with {now.total('CPU'):g} CPUs and {now.total('GPU'):g} GPUs{', and may grow' if reach.grows else ''}"


_ASK = """
import json, sys, ray
from pipeline.cluster import reach
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(json.dumps(reach()))
"""


def _reach_of(address: str) -> Reach:
    """What a cluster has and may grow to, asked by a process of its own: a session of Ray belongs to a main thread."""
    try:
        done = subprocess.run([sys.executable, "-c", _ASK, address], capture_output=True, text=True, timeout=50)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"ray.address: {address} does not answer; check that the cluster runs") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ClusterError(f"ray.address: {address} cannot be used ({redact(said)[:200]}); check that the cluster runs")
    return Reach(*json.loads(done.stdout.splitlines()[-1]))
