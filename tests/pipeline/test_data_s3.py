"""Data in a bucket of a real S3 server: as plain files and packed, with rights to read alone, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import CacheConfig
from pipeline.data.cache import local_data
from pipeline.data.pack import pack
from pipeline.data.room import leave_all
from pipeline.data.source import open_source
from pipeline.errors import ChangedObjectError, MissingObjectError, StorageError
from tests.pipeline.data.test_cache import SPLITS, same_as
from tests.servers import s3_server
from tests.tiny import write_dataset
from tood.config import DataConfig
from tood.errors import DataError

pytestmark = pytest.mark.short_run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = write_dataset(tmp_path_factory.mktemp("data"))
    content = json.loads((folder / "val.json").read_text())
    name = content["images"][0]["file_name"]
    content["images"][0]["file_name"] = "größe (1)#+.png"
    (folder / "val" / name).rename(folder / "val/größe (1)#+.png")
    (folder / "val.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def server(data, tmp_path_factory):
    """A bucket with the data as plain files under `plain`, and packed under `packed`."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env().items():
            patch.setenv(name, value)
        server.make_bucket("data")
        for file in data.rglob("*.*"):
            server.client().upload_file(str(file), "data", f"plain/{file.relative_to(data).as_posix()}")
        pack(data, "s3://data/packed", shard_bytes=20_000, say=lambda line: None)
        yield server


@pytest.fixture(autouse=True)
def alone():
    yield
    leave_all()


def bring(url: str, cache: Path, **options) -> DataConfig:
    return local_data(DataConfig(root=url, **SPLITS), CacheConfig(str(cache)), say=lambda line: None, **options)


@pytest.mark.parametrize("place", ["plain", "packed"])
def test_a_bucket_gives_what_was_put_there(server, data, tmp_path, place):
    local = bring(f"s3://data/{place}", tmp_path / "cache")
    assert same_as(data, local)
    assert bring(f"s3://data/{place}/", tmp_path / "cache", verify=True).root == local.root


def test_parts_and_versions_of_an_object(server):
    source = open_source("s3://data/plain")
    size, version = source.info("train.json")
    whole = b"".join(source.chunks("train.json"))
    assert len(whole) == size
    assert b"".join(source.chunks("train.json", 100, version)) == whole[100:]
    for start, of_version in ((0, '"other"'), (size + 1, version)):
        with pytest.raises(ChangedObjectError):
            list(source.chunks("train.json", start, of_version))
    with pytest.raises(MissingObjectError):
        source.info("absent.json")
    assert source.listing("val").keys() == {f"val/{i}.png" for i in range(2, 9)} | {"val/größe (1)#+.png"}


def test_all_missing_images_are_named_before_any_is_fetched(server, data, tmp_path):
    client = server.client()
    for name in ("train.json", "val.json"):
        client.upload_file(str(data / name), "data", f"half/{name}")
    with pytest.raises(DataError, match=r"that are not there \(16\)"):
        bring("s3://data/half", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_a_wrong_secret_or_bucket_is_named_without_repeating_it(server, tmp_path, monkeypatch):
    with pytest.raises(StorageError, match="there is no such bucket"):
        bring("s3://nosuch/x", tmp_path / "cache")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrongcanary")
    with pytest.raises(StorageError, match="secret key is wrong") as refused:
        bring("s3://data/packed", tmp_path / "cache")
    assert "canary" not in str(refused.value)


def test_packing_again_into_the_bucket_sends_nothing_and_another_set_is_refused(server, data, tmp_path):
    def dates():
        return {o["Key"]: o["LastModified"] for o in server.client().list_objects_v2(Bucket="data", Prefix="packed/")["Contents"]}

    before = dates()
    pack(data, "s3://data/packed", shard_bytes=20_000, say=lambda line: None)
    assert dates() == before
    other = shutil.copytree(data, tmp_path / "other")
    (other / "train/1.png").write_bytes(b"changed")
    with pytest.raises(StorageError, match="never replaced"):
        pack(other, "s3://data/packed", shard_bytes=20_000, say=lambda line: None)
