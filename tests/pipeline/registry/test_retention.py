"""What `gc` removes and what it never touches, in a folder and in a bucket."""

import os
import time
import zlib

import pytest

from pipeline.registry import retention
from pipeline.registry.models import pull
from pipeline.registry.promotion import promote, retire
from pipeline.registry.retention import collect
from pipeline.storage.checkpoints import upload_checkpoint
from pipeline.storage.folder import FolderStore
from pipeline.storage.opening import open_store
from pipeline.tracking.runs import CHECKPOINT, SWEEP, Run, experiment_id
from tests.pipeline.checkpoints import make_checkpoint
from tests.pipeline.publisher import Publisher


class Lab:
    """Runs with checkpoints in one store, and what `collect` says of them."""

    def __init__(self, tracking_uri, client, store, folder, name):
        self.uri, self.client, self.store, self.folder, self.name = tracking_uri, client, store, folder, name
        self.experiment = experiment_id(tracking_uri, name)

    def run(self, identity, status="FINISHED", tags=None) -> Run:
        run = Run.open(self.uri, self.experiment, f"{self.name}-{identity}", identity, tags)
        if status != "RUNNING":
            run.finish(status)
        return run

    def upload(self, identity, step) -> str:
        """Other bytes than any other test's: a copy of what a version was registered from is kept too."""
        run, seed = f"{self.name}-{identity}".replace("/", "-"), zlib.crc32(f"{self.name} {identity} {step}".encode())
        return upload_checkpoint(self.store, make_checkpoint(self.folder / f"{run}-{step}", step=step, seed=seed), run)

    def collect(self, **how):
        return {item.prefix: item for item in collect(self.uri, self.store, **{"older_than": 0} | how)}

    def going(self, **how) -> set[str]:
        return {prefix for prefix, item in self.collect(**how).items() if item.goes}


@pytest.fixture
def lab(tracking_uri, client, place, tmp_path, request) -> Lab:
    name = f"{request.node.originalname}-{place.partition(':')[0].strip('/').replace('/', '-')[:8]}"
    return Lab(tracking_uri, client, open_store(f"{place}/{name}"), tmp_path, name)


def test_of_a_run_the_newest_and_the_best_stay_until_it_is_deleted(lab):
    run = lab.run("a")
    older, best, newest = (lab.upload("a", step) for step in (1, 2, 3))
    assert lab.going() == set()  # which is the best, it does not say
    run.tags({CHECKPOINT: lab.store.url_of(best)})
    assert lab.going() == {older}
    assert lab.collect(remove=True)[older].why == "neither best nor newest of its run"
    assert set(lab.collect()) == {best, newest}
    lab.client.delete_run(run.run_id)
    items = lab.collect()
    assert {item.why for item in items.values()} == {"its run was deleted"}
    assert items[best].size > 5000  # weights, state and manifests
    assert set(lab.store.list()) > {f"{best}/manifest.json"}  # so far it was a list
    lab.collect(remove=True)
    assert lab.collect() == {}
    assert [key for key in lab.store.list() if key.startswith("checkpoints")] == []


def test_what_may_be_gone_on_with_stays_whole(lab):
    killed, running = lab.run("killed", "KILLED"), lab.run("running", "RUNNING")
    sweep = f"{lab.name}-sweep"
    lab.run("sweep/t1", "RUNNING", {SWEEP: sweep})
    over = lab.run("sweep/t2", "FINISHED", {SWEEP: sweep})
    prefixes = [lab.upload(identity, step) for identity in ("killed", "running", "sweep/t2") for step in (1, 2)]
    for run, prefix in ((killed, prefixes[1]), (running, prefixes[3]), (over, prefixes[5])):
        run.tags({CHECKPOINT: lab.store.url_of(prefix)})
    lab.client.delete_run(over.run_id)  # while its sweep goes on
    assert lab.going() == set()
    assert set(lab.collect(remove=True)) == set(prefixes)


def test_an_upload_that_never_finished_is_anothers_to_remove(lab):
    lab.run("a")
    torn = f"checkpoints/{lab.name}-a/00000001-abcdef012345"
    lab.store.put_bytes(f"{torn}/training.safetensors", b"torn")
    assert lab.going() == set()
    assert lab.collect()[torn].why == "its upload never finished: see `tood storage clean`"


def test_runs_of_another_mlflow_are_left_alone_unless_asked_for(lab):
    prefix = lab.upload("stranger", 1)
    assert lab.collect()[prefix].why == "MLflow has no such run"
    assert lab.going() == set()
    assert lab.going(unknown=True) == {prefix}


def test_versions_keep_their_files_until_they_are_retired(lab, client, run_id, tmp_path):
    publish = Publisher(lab.uri, run_id, tmp_path, lab.name, lab.store)
    for seed, value in enumerate((0.5, 0.6, 0.4), start=700):
        publish(seed, value)
    promote(lab.uri, f"{lab.name}/1", force=True, why="test")  # champion 1, challenger 2
    assert lab.going(unknown=True) == set()
    assert len(lab.collect(unknown=True, remove=True)) == 3
    retire(lab.uri, f"{lab.name}/3")
    (gone,) = lab.going(unknown=True)
    lab.collect(unknown=True, remove=True)
    assert not any(key.startswith(gone) for key in lab.store.list())
    for version in (1, 2):
        pull(f"{lab.name}/{version}", lab.uri, tmp_path / f"pulled{version}")


def test_what_is_registered_meanwhile_stays(lab, run_id, tmp_path, monkeypatch):
    publish = Publisher(lab.uri, run_id, tmp_path, lab.name, lab.store)
    seed = zlib.crc32(lab.name.encode())  # bytes that no version holds yet, in any store
    prefix = publish.upload(seed)
    judge = retention._judge

    def slow(*arguments):
        item = judge(*arguments)
        publish(seed)  # another process, after this one has looked
        return item

    monkeypatch.setattr(retention, "_judge", slow)
    item = lab.collect(unknown=True, remove=True)[prefix]
    assert (item.goes, item.why) == (False, "registered meanwhile")
    pull(lab.name, lab.uri, tmp_path / "pulled")


def test_a_store_reached_by_a_link_is_the_same_store(tracking_uri, client, run_id, tmp_path):
    publish = Publisher(tracking_uri, run_id, tmp_path, "reached-by-a-link")
    publish(720)
    (tmp_path / "link").symlink_to(tmp_path / "store")
    (item,) = collect(tracking_uri, FolderStore(tmp_path / "link"), older_than=0, unknown=True, remove=True)
    assert (item.goes, item.why) == (False, "a registered version")


def test_age_is_that_of_the_newest_object(tracking_uri, tmp_path):
    store = FolderStore(tmp_path / "store")
    prefix = upload_checkpoint(store, make_checkpoint(tmp_path / "checkpoint", seed=730), "aged")
    old = time.time() - 3 * 86_400
    for path in store.root.rglob("*.*"):
        os.utime(path, (old, old))
    (item,) = collect(tracking_uri, store, older_than=2 * 86_400, unknown=True)
    assert item.goes
    assert item.age == pytest.approx(3 * 86_400, abs=60)
    os.utime(store.root / prefix / "training.safetensors")
    (item,) = collect(tracking_uri, store, older_than=2 * 86_400, unknown=True)
    assert (item.goes, item.why) == (False, "younger than the limit")
