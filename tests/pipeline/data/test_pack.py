"""Packing: the same files give the same objects, nothing is replaced, what cannot be packed is listed at once."""

import hashlib
import io
import json
import shutil
import tarfile

import pytest

from pipeline.cli import main
from pipeline.config import CacheConfig
from pipeline.data.cache import local_data
from pipeline.data.manifest import MANIFEST, Manifest, PackedFile, Shard, parse_manifest
from pipeline.data.pack import pack
from pipeline.data.room import leave_all
from pipeline.errors import IntegrityError, StorageError
from pipeline.storage.opening import open_store
from tests.tiny import write_dataset
from tests.web import web_server
from tood.config import DataConfig, SplitConfig
from tood.errors import DataError

SPLITS = {"train": SplitConfig("train.json", "train"), "val": SplitConfig("val.json", "val")}


@pytest.fixture
def data(tmp_path):
    folder = write_dataset(tmp_path / "data", 4, 2)
    (folder / "val/größe (1)#.png").write_bytes(b"a name that object stores have seen worse than")
    (folder / ".DS_Store").write_bytes(b"hidden")
    yield folder
    leave_all()


def quiet(*arguments, **options):
    return pack(*arguments, say=lambda line: None, **options)


def objects(folder) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".incoming" not in p.parts
    }


def test_shards_hold_every_file_once_and_depend_on_names_and_content_alone(data, tmp_path):
    packed = quiet(data, str(tmp_path / "a"), shard_bytes=10_000)
    assert packed.files == 9
    assert packed.shards > 1
    manifest = parse_manifest((tmp_path / "a" / MANIFEST).read_bytes(), "here")
    found = {}
    for number, shard in enumerate(manifest.shards):
        with tarfile.open(tmp_path / "a" / shard.name) as archive:
            for member in archive:
                found[member.name] = (archive.extractfile(member).read(), number)
    for name, entry in manifest.files.items():
        if name.endswith(".json"):
            assert entry.shard is None
            assert (tmp_path / "a" / name).read_bytes() == (data / name).read_bytes()
        else:
            assert found.pop(name) == ((data / name).read_bytes(), entry.shard)
    assert not found
    again = shutil.copytree(data, tmp_path / "copied")
    quiet(again, str(tmp_path / "b"), shard_bytes=10_000)
    assert objects(tmp_path / "a") == objects(tmp_path / "b")


def test_packing_goes_on_where_it_stopped_and_never_replaces(data, tmp_path, monkeypatch):
    store = open_store(str(tmp_path / "a"))
    quiet(data, str(tmp_path / "a"), shard_bytes=10_000)
    store.delete(MANIFEST)
    gone = store.list("shards")[0]
    store.delete(gone)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "a/shards").iterdir()}
    quiet(data, str(tmp_path / "a"), shard_bytes=10_000)
    assert {gone, MANIFEST} <= set(store.list())
    assert {p: p.stat().st_mtime_ns for p in times} == times
    quiet(data, str(tmp_path / "a"), shard_bytes=10_000)  # the same once more
    (data / "val/1.png").write_bytes(b"other")
    with pytest.raises(StorageError, match="never replaced; choose another --output"):
        quiet(data, str(tmp_path / "a"), shard_bytes=10_000)


def test_plain_files_keep_their_names(data, tmp_path):
    assert quiet(data, str(tmp_path / "a"), shard_bytes=0).shards == 0
    stored = objects(tmp_path / "a")
    assert stored.pop(MANIFEST)
    assert stored == {name: content for name, content in objects(data).items() if name != ".DS_Store"}


def test_links_and_odd_names_are_listed_at_once(data, tmp_path):
    (data / "train/link.png").symlink_to(data / "train/1.png")
    (data / "elsewhere").symlink_to(tmp_path)
    (data / "a\\b.png").write_bytes(b"")
    (data / MANIFEST).write_text("{}")
    with pytest.raises(DataError) as caught:
        quiet(data, str(tmp_path / "a"))
    said = "\n".join(caught.value.problems)
    for word in ("train/link.png: a link", "elsewhere: a link", "a\\\\b.png", "manifest.json: a name"):
        assert word in said
    assert not (tmp_path / "a").exists()
    for wrong in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=r"no such folder|holds no file"):
            quiet(wrong, str(tmp_path / "a"))


def test_the_verb(data, tmp_path, capsys):
    assert main(["data", "pack", "--root", str(data), "--output", str(tmp_path / "a"), "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert (packed["files"], packed["shards"], packed["url"]) == (9, 1, (tmp_path / "a").as_uri())


HASH = "0" * 64


@pytest.mark.parametrize(
    ("files", "shards", "says"),
    [({"../x": [1, HASH, None]}, [], "not an object name"), ({"/x": [1, HASH, None]}, [], "not an object name"),
     ({"x": [-1, HASH, None]}, [], "size"), ({"x": [1, "abc", None]}, [], "sha256"), ({"x": [1, HASH, 0]}, [], "shard"),
     ({"x": [1, HASH, True]}, [["s", 1, HASH], ["t", 1, HASH]], "shard"),
     ({"a": [1, HASH], "a/b": [1, HASH]}, [], "a file and a folder"),
     ({}, [["../s", 1, HASH]], "not an object name"), ([], [], "manifest"), ({"x": 3}, [], "manifest")],
)  # fmt: skip
def test_a_manifest_that_somebody_made_up_is_refused(files, shards, says):
    content = {"format": "tood-data-1", "files": files, "shards": shards}
    with pytest.raises(IntegrityError, match=says):
        parse_manifest(json.dumps(content).encode(), "here")


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'{"format": "tood-data-9"}', b"[" * 100_000])
def test_what_is_no_manifest_is_said_to_be_none(content):
    with pytest.raises(IntegrityError, match="here: not a manifest"):
        parse_manifest(content, "here")


def member(name: str, content: bytes = b"x", **more) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


@pytest.mark.parametrize(
    ("members", "says"),
    [([member("../../escaped")], "no file of its manifest"), ([member("/tmp/escaped")], "no file of its manifest"),
     ([member("train/1.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "no file of its manifest"),
     ([member("train/1.png", b"", type=tarfile.LNKTYPE, linkname="../x")], "no file of its manifest"),
     ([member("train/1.png", b"", type=tarfile.FIFOTYPE)], "no file of its manifest"),
     ([member("train/1.png", b"other")], "is larger than the 1 bytes"),
     ([member("train/1.png"), member("train/1.png")], "no file of its"),
     ([], "lacks"), (None, "not a readable tar")],
)  # fmt: skip
def test_a_shard_writes_nothing_but_the_files_of_its_manifest(data, tmp_path, members, says):
    """A shard and a manifest that agree on the shard's hash, made by somebody with bad intentions."""
    served = tmp_path / "served"
    content = io.BytesIO(b"no tar" * 500)
    if members is not None:
        with tarfile.open(fileobj=content, mode="w") as archive:
            for info, inside in members:
                archive.addfile(info, io.BytesIO(inside))
    quiet(data, str(served), shard_bytes=0)
    honest = parse_manifest((served / MANIFEST).read_bytes(), "here")
    blob = content.getvalue()
    shard = Shard("shards/x.tar", len(blob), hashlib.sha256(blob).hexdigest())
    (served / "shards").mkdir()
    (served / shard.name).write_bytes(blob)
    files = honest.files | {"train/1.png": PackedFile(1, hashlib.sha256(b"x").hexdigest(), 0)}
    (served / MANIFEST).write_bytes(Manifest(files, (shard,)).to_bytes())
    with web_server(served) as server, pytest.raises(IntegrityError, match=says):
        local_data(DataConfig(root=server.url, **SPLITS), CacheConfig(str(tmp_path / "cache")), say=lambda line: None)
    assert not list(tmp_path.rglob("escaped"))
    kept = [p for p in (tmp_path / "cache").glob("*/files/train/1.png") if not p.is_file() or p.is_symlink()]
    assert not kept
