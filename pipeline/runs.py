"""One training run from the command line: name it or find it again, train it on Ray, register what came out."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline import cluster
from pipeline.config import Experiment, experiment_of, to_yaml
from pipeline.publish import register_best
from pipeline.registry.models import Version
from pipeline.repeats import configuration_of
from pipeline.site import Site, absolute, one_driver, prepare
from pipeline.tracking.facts import environment_tags, flat_params
from pipeline.tracking.links import chart_url
from pipeline.tracking.runs import CHECKPOINT, CONFIGURATION, Run
from pipeline.train import Address, Progress, fit
from tood.config import identity, to_dict
from tood.errors import ConfigError, StoppedError
from tood.optimisation import describe_rate

METRIC = "val/AP"


def train_experiment(
    values: dict, *, resume: bool = False, stop_after: int | None = None, say: Callable[[str], None] = print
) -> tuple[Progress, Version | None]:
    """Train to the end or to `stop_after` epochs, and register the best checkpoint. `resume`: go on with the newest run."""
    experiment = absolute(experiment_of(values))
    run = _newest(experiment) if resume else f"{experiment.name}-{experiment.hash}-{time.strftime('%Y%m%d-%H%M%S')}"
    site = prepare(experiment)
    progress, tracked = train_run(experiment, site, run, stop_after=stop_after, say=say)
    version = None
    if progress.best_prefix:
        tracked.best(METRIC, progress.best_value)
        tracked.tags({CHECKPOINT: site.store.url_of(progress.best_prefix)})  # waits for MLflow, which the registry needs too
        try:
            version = register_best(
                site,
                experiment,
                prefix=progress.best_prefix,
                value=progress.best_value,
                metric=METRIC,
                run_id=tracked.run_id,
                params=flat_params(to_dict(experiment)),
            )
        except BaseException:
            tracked.finish("FAILED")
            raise
        say(f"best {METRIC} {progress.best_value:.4f} after epoch {progress.best_epoch}")
        say(f"registered: models:/{version.name}/{version.version} ({version.decision.reason})")
    tracked.finish("FINISHED")
    start = "" if site.ui == site.tracking else f"   (served by `tood ui output={experiment.output}`)"
    say(f"newest checkpoint: {site.store.url_of(progress.prefix)}")
    say(f"curves:            {chart_url(site.ui, site.experiment_id)}{start}")
    return progress, version


def train_run(
    experiment: Experiment,
    site: Site,
    run: str,
    *,
    tags: Mapping[str, str] | None = None,
    stop_after: int | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Progress, Run]:
    """Train under a name; the same name again goes on where it was. The MLflow run is left open for what follows training.

    Raises StorageError while another process trains under this name.
    """
    with one_driver(site, run, say):
        return _train_run(experiment, site, run, tags or {}, stop_after, say)


def _train_run(
    experiment: Experiment, site: Site, run: str, tags: Mapping[str, str], stop_after: int | None, say: Callable[[str], None]
) -> tuple[Progress, Run]:
    folder = site.output / run
    folder.mkdir(exist_ok=True)
    (folder / "experiment.yaml").write_text(to_yaml(experiment))
    tracked = Run.open(
        site.tracking,
        site.experiment_id,
        identity=run,
        name=run,
        tags={"tood.kind": "train", "config_hash": experiment.hash}
        | {CONFIGURATION: configuration_of(identity(experiment))}
        | environment_tags()
        | dict(tags),
    )
    tracked.params(flat_params(to_dict(experiment)))
    tracked.text(to_yaml(experiment), "experiment.yaml")
    say(f"run {run}: {describe_rate(experiment.train)}")
    try:
        with cluster.connected(experiment.ray, cluster.demand(experiment.ray, 0).cpus, say):
            gpus = cluster.gpus_per_worker(experiment.ray)
            cluster.concurrency(cluster.demand(experiment.ray, gpus), 1)
            address = Address(
                run=run,
                store=site.store_url,
                tracking=site.tracking,
                mlflow_run=tracked.run_id,
                ray_storage=site.ray_storage(experiment, run),
            )
            return fit(experiment, address, gpus=gpus, stop_after=stop_after, metric=METRIC), tracked
    except (KeyboardInterrupt, SystemExit, StoppedError):  # Ctrl-C, or SIGTERM as a stopped job gets it
        tracked.finish("KILLED")
        raise
    except BaseException:
        tracked.finish("FAILED")
        raise


def _newest(experiment: Experiment) -> str:
    found = sorted(p.parent.name for p in Path(experiment.output).glob(f"{experiment.name}-{experiment.hash}-*/experiment.yaml"))
    if not found:
        raise ConfigError(
            f"--resume: {experiment.output} holds no run of {experiment.name} with these settings (hash {experiment.hash}); "
            "start it without --resume"
        )
    return found[-1]
