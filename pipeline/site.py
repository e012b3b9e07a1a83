"""Where an experiment runs and keeps things: output folder, tracking, object store, Ray's own state. Checked before a start."""

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.config import Experiment, experiment_of, merge
from pipeline.data.cache import local_data
from pipeline.data.source import is_remote, open_source
from pipeline.detect import find_model
from pipeline.refusals import make_folder
from pipeline.storage.lock import Held, hold
from pipeline.storage.opening import check, open_store
from pipeline.storage.store import Store
from pipeline.tracking.access import connect, resolve_uri
from pipeline.tracking.leftovers import deliver_left
from pipeline.tracking.runs import experiment_id
from tood.errors import ConfigError
from tood.run_state import start
from tood.training import read_data

log = logging.getLogger(__name__)
LEFT_SECONDS = 10.0  # longest time that a start spends on what dead processes left for MLflow
LOCAL_UI = "http://127.0.0.1:5000"  # where `tood ui` serves by default


@dataclass(frozen=True)
class Site:
    output: Path  # folder of the embedded parts and of what a person reads
    tracking: str  # MLflow's address
    experiment_id: str
    store_url: str

    @property
    def store(self) -> Store:
        """The object store. Opened anew at each use: a site travels to trials, an open connection cannot."""
        return open_store(self.store_url)

    @property
    def ui(self) -> str:
        return self.tracking if self.tracking.startswith("http") else LOCAL_UI

    def ray_storage(self, experiment: Experiment, run: str) -> str:
        """Ray's own state: on one machine a folder; on a cluster beside the checkpoints, where every node reaches it."""
        if not experiment.ray.address or not self.store_url.startswith("s3://"):
            return str(self.output / run / "ray")
        endpoint = next((os.environ[v] for v in _ENDPOINTS if os.environ.get(v)), "")
        scheme, _, host = endpoint.partition("://")
        query = f"?endpoint_override={host}&scheme={scheme}" if host else ""
        return f"{self.store_url.rstrip('/')}/ray/{run}{query}"


_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")


def absolute(experiment: Experiment) -> Experiment:
    """The experiment with its folders as absolute paths: workers run elsewhere."""
    output = str(Path(experiment.output).expanduser().absolute())
    data, cache = experiment.data, experiment.cache
    if not is_remote(data.root):
        data = replace(data, root=str(Path(data.root).expanduser().absolute()))
    if cache.dir and not cache.dir.startswith("~"):  # a home is each node's own
        cache = replace(cache, dir=str(Path(cache.dir).absolute()))
    init = experiment.init
    if init not in ("none", "imagenet") and not init.startswith("models:/"):
        here = Path(init).expanduser().absolute()
        if not here.exists() and not (experiment.ray.address and init.startswith(("/", "~"))):  # it may lie on nodes alone
            raise ConfigError(f"init: {experiment.init} does not exist; give a model folder, models:/NAME@alias, imagenet or none")
        if not (experiment.ray.address and init.startswith("~")):  # a home is each node's own; and so a hash is the same on all
            init = str(here)
    return replace(experiment, output=output, data=data, cache=cache, init=init)


def absolute_values(values: dict) -> dict:
    """Values of an experiment with its folders as `absolute` has them, so that they mean the same wherever they are read."""
    whole = absolute(experiment_of(values))
    folders = {"output": whole.output, "init": whole.init, "data": {"root": whole.data.root}, "cache": {"dir": whole.cache.dir}}
    return merge(values, folders)


def tracking_address(experiment: Experiment, output: Path) -> str:
    """tracking.uri, else what MLflow's own MLFLOW_TRACKING_URI says, else an SQLite file in the output folder."""
    return resolve_uri(experiment.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", ""), output)


def one_driver(site: Site, run: str, say: Callable[[str], None]) -> AbstractContextManager[Held]:
    """For as long as a run or a sweep is driven: a second driver would train the same, and remove what the first relies on.

    A driver that was killed here is in nobody's way; of one elsewhere a sign of life is waited for. One that the store did not
    hear of for a minute is taken for dead.
    """
    return hold(site.store, f"runs/{run}.lock", run, say=say)


def prepare(experiment: Experiment) -> Site:
    """Reach everything that a run will need: data, tracking, store, initial weights. Raises the ToodError of what fails."""
    output = Path(experiment.output)
    tracking = tracking_address(experiment, output)
    store = open_store(experiment.storage.url or str(output / "store"))
    here = not experiment.ray.address  # on a cluster, data and weights may lie on the nodes alone
    if is_remote(experiment.data.root):
        open_source(experiment.data.root)  # refuses an address with credentials in it before it is written anywhere
    recipe, registered = experiment.recipe, experiment.init.startswith("models:/")
    data = read_data(local_data(recipe.data, experiment.cache)) if here else None
    if here and not registered and recipe.init != "none":
        start(recipe, {}, *data, torch.device("cpu"))
    make_folder(output, "output")
    connect(tracking)
    check(store)
    for left in deliver_left(tracking, LEFT_SECONDS, LEFT_SECONDS / 3):
        if left.problem:
            log.warning("an earlier run: %s", left.problem)
    if registered:
        model = find_model(recipe.init, tracking, output / "models")
        if here:
            start(replace(recipe, init=str(model)), {}, *data, torch.device("cpu"))
    name = experiment.tracking.experiment or experiment.name
    return Site(output, tracking, experiment_id(tracking, name), store.url)
