"""Where a suite keeps its runs and runs its trainings: one place for all its entries, whatever their experiments say."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pipeline.config import Experiment, RayConfig, StorageConfig, experiment_of
from pipeline.nightly.suite import Suite, place_values
from pipeline.refusals import make_folder
from pipeline.site import Site, absolute, tracking_address
from pipeline.storage.opening import check, open_store
from pipeline.tracking.access import connect
from pipeline.tracking.runs import experiment_id


class Place(NamedTuple):
    """Where a suite keeps things, and where it runs."""

    site: Site
    ray: RayConfig

    def run_link(self, run_id: str) -> str:
        return f"{self.site.ui}/#/experiments/{self.site.experiment_id}/runs/{run_id}" if run_id else ""


def find_place(suite: Suite, settings: Sequence[str]) -> Place:
    """Reach tracking and store. Raises the ToodError of what fails."""
    values = place_values(suite, settings)
    # How many workers share a batch is a matter of each entry's own batch, and was checked with it.
    ray = {key: value for key, value in (values.get("ray") or {}).items() if key not in ("workers", "workers_min")}
    asked = absolute(experiment_of(values | {"name": suite.name, "ray": ray}))
    output = Path(asked.output)
    make_folder(output, "output")
    tracking = tracking_address(asked, output)
    store = open_store(asked.storage.url or str(output / "store"))
    connect(tracking)
    check(store)
    return Place(Site(output, tracking, experiment_id(tracking, experiment_name(suite)), store.url), asked.ray)


def experiment_name(suite: Suite) -> str:
    """Of MLflow's experiment: nights and their trainings."""
    return f"nightly-{suite.name}"


def at_place(experiment: Experiment, suite: Suite, place: Place, model: str) -> Experiment:
    """An entry's experiment, kept where the night is."""
    site = place.site
    tracking = replace(experiment.tracking, uri=site.tracking, experiment=experiment_name(suite), model=model)
    kept = replace(experiment, output=str(site.output), tracking=tracking, storage=StorageConfig(site.store_url), sweep=None)
    return absolute(kept)
