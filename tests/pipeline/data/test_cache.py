"""data.root as an address: what arrives is what was there, once a node, whatever is killed, cut, missing or damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import CacheConfig, experiment_of
from pipeline.data import source as data_source
from pipeline.data.cache import local_data
from pipeline.data.pack import pack
from pipeline.data.room import leave_all
from pipeline.errors import IntegrityError, StorageError
from pipeline.experiment_files import load_values
from tests.tiny import write_dataset, write_experiment
from tests.web import web_server
from tood.checkpoint import load_model
from tood.config import DataConfig, SplitConfig
from tood.data.coco import check_images, read_split
from tood.errors import ConfigError, DataError
from tood.training import train

SPLITS = {"train": SplitConfig("train.json", "train"), "val": SplitConfig("val.json", "val")}
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A data set of 24 images, and a file that no annotations list."""
    folder = write_dataset(tmp_path_factory.mktemp("plain"))
    (folder / "notes.txt").write_text("not asked for")
    return folder


@pytest.fixture(scope="module")
def packed(plain, tmp_path_factory) -> Path:
    """The same in shards of some 20 kB."""
    folder = tmp_path_factory.mktemp("packed")
    assert pack(plain, str(folder), shard_bytes=20_000, say=lambda line: None).shards > 3
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(data_source.time, "sleep", lambda seconds: None)
    yield
    leave_all()


@pytest.fixture(params=["plain", "packed"])
def server(request, tmp_path):
    served = shutil.copytree(request.getfixturevalue(request.param), tmp_path / "served")
    with web_server(served) as server:
        yield server


def bring(url: str, cache: Path, splits=("train", "val"), max_gb: float = 1, say=lambda line: None, **options) -> DataConfig:
    return local_data(DataConfig(root=url, **SPLITS), CacheConfig(str(cache), max_gb), splits, say=say, **options)


def same_as(plain: Path, data: DataConfig) -> bool:
    ours, theirs = ([read_split(c, s) for s in SPLITS] for c in (data, replace(data, root=str(plain))))
    files = [(mine.path, its.path) for a, b in zip(ours, theirs, strict=True) for mine, its in zip(a.images, b.images, strict=True)]
    return [d.fingerprint for d in ours] == [d.fingerprint for d in theirs] and all(
        mine.read_bytes() == its.read_bytes() for mine, its in files
    )


def test_a_folder_is_taken_as_it_is(tmp_path):
    data = DataConfig(root="data/coco")
    assert local_data(data, CacheConfig(str(tmp_path / "cache"))) is data
    assert not (tmp_path / "cache").exists()


def test_what_arrives_is_what_was_there_and_it_comes_once(server, plain, tmp_path):
    said = []
    data = bring(server.url, tmp_path / "cache", say=said.append)
    assert same_as(plain, data)
    assert data == replace(DataConfig(root=data.root, **SPLITS))
    assert server.url in said[-1]
    assert f"{27 if 'manifest.json' in os.listdir(server.folder) else 26} files" in said[-1]
    requests = server.requests.copy()
    assert max(requests.values()) == 1
    assert "notes.txt" not in {p.name for p in Path(data.root).rglob("*")} or "manifest.json" in requests
    assert not list((tmp_path / "cache").glob("*/partial/*"))
    assert bring(server.url, tmp_path / "cache") == data
    assert set(server.requests - requests) <= {"manifest.json"}


def test_only_the_splits_that_are_asked_for_are_fetched(server, tmp_path):
    data = bring(server.url, tmp_path / "cache", ["val"])
    assert len(read_split(data, "val").images) == 8
    assert "train.json" not in server.requests
    first = sum(server.requests.values())
    assert bring(server.url, tmp_path / "cache", ["val", "train"]).root == data.root
    assert len(read_split(data, "train").images) == 16
    assert server.requests["val.json"] == 1
    assert sum(server.requests.values()) > first


def test_a_flipped_byte_at_the_source_is_refused(packed, tmp_path):
    served = shutil.copytree(packed, tmp_path / "served")
    shard = max((served / "shards").iterdir(), key=lambda p: p.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with web_server(served) as server, pytest.raises(IntegrityError, match=f"{shard.name}.*sha256.*damaged"):
        bring(server.url, tmp_path / "cache")


def test_a_changed_byte_in_the_cache_is_found_and_fetched_again(server, plain, tmp_path):
    data, said = bring(server.url, tmp_path / "cache"), []
    file = Path(data.root) / "train/3.png"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    content = file.read_bytes()
    file.write_bytes(content[:-5] + b"?" + content[-4:])
    assert same_as(plain, bring(server.url, tmp_path / "cache"))  # the time of change tells
    times = times[0], file.stat().st_mtime_ns
    file.write_bytes(content[:-5] + b"?" + content[-4:])
    os.utime(file, ns=times)  # a disk's own damage changes neither size nor time: only hashing finds it
    assert not same_as(plain, bring(server.url, tmp_path / "cache"))
    assert same_as(plain, bring(server.url, tmp_path / "cache", verify=True, say=said.append))
    assert any("1 damaged" in line and "train/3.png" in line for line in said)
    file.unlink()
    assert same_as(plain, bring(server.url, tmp_path / "cache"))


def test_all_missing_images_are_named_at_once(plain, tmp_path):
    served = shutil.copytree(plain, tmp_path / "served")
    for name in ("train/2.png", "train/9.png"):
        (served / name).unlink()
    with web_server(served) as server:
        with pytest.raises(DataError, match=r"train.json lists images that are not there \(2\)") as refused:
            bring(server.url, tmp_path / "cache")
        assert [p.rpartition(" ")[2] for p in refused.value.problems] == ["train/2.png", "train/9.png"]
        shutil.copy(plain / "train/2.png", served / "train/2.png")
        shutil.copy(plain / "train/9.png", served / "train/9.png")
        assert same_as(plain, bring(server.url, tmp_path / "cache"))
        assert server.requests["train/1.png"] == 1  # what was there is kept


def test_what_annotations_must_not_name(plain, tmp_path):
    served = shutil.copytree(plain, tmp_path / "served")
    content = json.loads((served / "train.json").read_text())
    for entry, name in zip(content["images"], ["../../x.png", "/etc/passwd", "a\\b.png", "", None, 7, "x/../y.png"], strict=False):
        entry["file_name"] = name
    (served / "train.json").write_text(json.dumps(content))
    with web_server(served) as server:
        with pytest.raises(DataError, match=r"names that are no files beneath data\.train\.images") as refused:
            bring(server.url, tmp_path / "cache")
        assert len(refused.value.problems) == 7
        assert set(server.requests) == {"manifest.json", "train.json"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"train": SplitConfig("/data/train.json", "train")}, "data.train.annotations"), ({"source": "digits"}, "digits"),
     ({"train": SplitConfig("train.json", "../train")}, "data.train.images"), ({"root": "gs://x/y"}, "no address"),
     ({"train": SplitConfig("absent.json", "train")}, "absent.json: no such file; set data.root and data.train.annotations"),
     ({"train": SplitConfig("train/1.png", "train")}, "not")],
)  # fmt: skip
def test_what_cannot_be_fetched_is_named(plain, tmp_path, changes, says):
    with web_server(plain) as server:
        data = replace(DataConfig(root=server.url, **SPLITS), **changes)
        with pytest.raises((ConfigError, DataError, StorageError), match=says):
            local_data(data, CacheConfig(str(tmp_path / "cache"), 1), say=lambda line: None)


def test_another_content_at_the_same_address_is_another_data_set(plain, tmp_path):
    served = shutil.copytree(plain, tmp_path / "served")
    with web_server(served) as server:
        first = bring(server.url, tmp_path / "cache")
        content = json.loads((served / "train.json").read_text())
        content["annotations"][0]["bbox"][2] -= 1
        (served / "train.json").write_text(json.dumps(content))
        second = bring(server.url, tmp_path / "cache")
    assert second.root != first.root
    assert read_split(first, "train").fingerprint != read_split(second, "train").fingerprint


def test_a_server_that_tells_neither_size_nor_version_will_do(plain, tmp_path):
    with web_server(plain) as server:
        server.has_versions = False
        assert same_as(plain, bring(server.url, tmp_path / "cache"))


# -- several data sets in one cache -----------------------------------------------------------------------------------


def sizes(cache: Path) -> dict[str, int]:
    return {p.parent.name: int(p.read_text()) for p in cache.glob("*/reserved")}


def test_the_longest_unused_data_set_makes_room_and_one_in_use_never(tmp_path):
    """Each data set takes 0.5 MB, and while it is fetched its shard another 0.5."""
    cache, big = tmp_path / "cache", tmp_path / "big"
    for name in ("a", "b", "c", "large"):
        data = write_dataset(big / "plain" / name, 4, 4)
        (data / "filler.bin").write_bytes(os.urandom(2_000_000 if name == "large" else 400_000))
        pack(data, str(big / name), say=lambda line: None)
    with web_server(big) as server:
        a, b = (Path(bring(f"{server.url}/{name}", cache, max_gb=0.0016).root).parent for name in "ab")
        leave_all()
        os.utime(a / "used", (2e9, 2e9))  # `a` was used after `b`
        c = Path(bring(f"{server.url}/c", cache, max_gb=0.0016).root).parent
        assert [p.exists() for p in (a, b, c)] == [True, False, True]
        assert 900_000 < sum(sizes(cache).values()) <= 1_600_000
        leave_all()
        bring(f"{server.url}/a", cache, max_gb=0.0016)
        os.utime(a / "used", (1, 1))  # long ago, but in use now
        bring(f"{server.url}/b", cache, max_gb=0.0016)
        assert [p.exists() for p in (a, b, c)] == [True, True, False]
        with pytest.raises(StorageError, match=r"no room.*in use; raise cache.max_gb"):
            bring(f"{server.url}/c", cache, max_gb=0.0016)
        assert [p.exists() for p in (a, b)] == [True, True]
        leave_all()
        assert check_images(read_split(bring(f"{server.url}/c", cache, max_gb=0.0016), "val")) == []
        leave_all()
        kept = set(sizes(cache))
        with pytest.raises(StorageError, match=r"the data take 0.00 GB.*raise cache.max_gb"):
            bring(f"{server.url}/large", cache, max_gb=0.0016)
        assert kept <= set(sizes(cache))  # nothing is removed in vain


# -- other processes --------------------------------------------------------------------------------------------------

FETCH = """
import sys
from pathlib import Path
from tests.pipeline.data.test_cache import bring
print(bring(sys.argv[1], Path(sys.argv[2]), say=lambda line: print(line, flush=True)).root, flush=True)
"""


def start(url: str, cache: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", FETCH, url, str(cache)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_process_killed_while_it_fetches_leaves_nothing_wrong_and_the_next_goes_on(server, plain, tmp_path):
    reached, killed = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        if name.endswith(".tar") or name.endswith(".png"):
            seen.add(name)
            if len(seen) > 3:  # some files are whole by now, others under way
                reached.set()
                killed.wait(300)

    seen: set[str] = set()
    server.before = hold
    process = start(server.url, tmp_path / "cache")
    assert reached.wait(300), "the process never came so far"
    deadline = time.monotonic() + 300
    while not list((tmp_path / "cache").glob("*/files/*/*.png")) and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    whole = {p.name for p in (tmp_path / "cache").glob("*/files/*/*.png")}
    assert whole
    server.before = lambda name: None
    killed.set()
    before = server.requests.copy()
    assert same_as(plain, bring(server.url, tmp_path / "cache"))  # its lock went with it
    again = server.requests - before
    assert "train.json" not in again
    assert len(again) < 26


def test_a_large_file_goes_on_where_a_killed_process_stopped(plain, tmp_path):
    served, data = tmp_path / "served", shutil.copytree(plain, tmp_path / "data")
    (data / "filler.bin").write_bytes(os.urandom(3_000_000))
    pack(data, str(served), say=lambda line: None)
    (shard,) = (p.relative_to(served).as_posix() for p in (served / "shards").iterdir())
    with web_server(served) as server:
        server.cut[shard] = 2_500_000
        server.before = lambda name: server.busy.extend([418] if name == shard and server.requests[shard] > 1 else [])
        with pytest.raises(StorageError, match="418"):  # the process ends with a part of the shard on its disk
            bring(server.url, tmp_path / "cache")
        server.before, before = lambda name: None, server.sent
        assert same_as(plain, bring(server.url, tmp_path / "cache"))
        assert [(name, first > 1_000_000) for name, first in server.ranges] == [(shard, True)]
        assert server.sent - before < 1_500_000


def test_of_two_processes_one_fetches_and_the_other_waits(server, plain, tmp_path):
    server.before = lambda name: threading.Event().wait(0.05)
    both = [start(server.url, tmp_path / "cache") for _ in range(2)]
    printed = [process.communicate(timeout=400) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    roots = {out.strip().splitlines()[-1] for out, _ in printed}
    assert len(roots) == 1
    assert {name: count for name, count in server.requests.items() if count > 1} in ({}, {"manifest.json": 2})
    assert sum("waiting" in out for out, _ in printed) <= 1
    assert same_as(plain, DataConfig(root=roots.pop(), **SPLITS))


def test_a_run_from_an_address_learns_the_same_bits(packed, plain, tmp_path):
    values = load_values(str(write_experiment(tmp_path)), ["train.epochs=1", "train.milestones=[]"])
    disk = experiment_of(values, {"data.root": str(plain)})
    with web_server(packed) as server:
        remote = experiment_of(values, {"data.root": server.url, "cache.dir": str(tmp_path / "cache")})
        fetched = replace(remote.recipe, data=local_data(remote.data, remote.cache, say=lambda line: None))
    assert remote.hash == disk.hash
    train(disk.recipe, tmp_path / "disk")
    train(fetched, tmp_path / "remote")
    ours, theirs = (load_model(tmp_path / place / "epoch_0001") for place in ("disk", "remote"))
    assert ours.info.config_hash == theirs.info.config_hash
    assert ours.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)
    assert ours.info.metrics == theirs.info.metrics


def test_where_data_come_from_is_no_part_of_a_runs_hash(tmp_path):
    tiny = str(write_experiment(tmp_path))
    hashes = {
        experiment_of(load_values(tiny, settings)).hash
        for settings in ([], ["data.root=s3://bucket/x"], ["cache.dir=/scratch"], ["cache.max_gb=3", "data.root=https://h/x"])
    }
    assert len(hashes) == 1
