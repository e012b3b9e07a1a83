"""Archives whose members would land elsewhere, or unfold without end."""

import contextlib
import hashlib
import io
import json
import resource
import signal
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from tests.bad_inputs.hostile.ground import Attack, Ground, imported, put
from tests.bad_inputs.packs import Shown, member, tar
from tests.bad_inputs.torch_files import repacked, saved
from tood.errors import ToodError


def _slip(ground: Ground) -> bytes:
    """Every entry of a torch file under a name that leaves the folder, and the trap among them."""
    data = saved({"state_dict": {"x": __import__("torch").ones(3)}})
    with zipfile.ZipFile(io.BytesIO(data)) as sound:
        entries = {name: sound.read(name) for name in sound.namelist()}
    up = "../" * 12
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in entries.items():
            made.writestr(f"{up}{ground.trap.parent}/{name.partition('/')[2]}", content)
        made.writestr(f"{up}{ground.trap}", b"x")
        made.writestr(str(ground.trap), b"x")
    return buffer.getvalue()


def _slipping_key(ground: Ground) -> bytes:
    """A tensor whose memory is said to lie outside."""
    key = f"../../../..{ground.trap}"
    data = repacked({})
    with zipfile.ZipFile(io.BytesIO(data)) as sound:
        content = next(sound.read(name) for name in sound.namelist() if name.endswith("data.pkl"))
    old = b"X\x01\x00\x00\x000"  # the text "0"
    assert old in content
    return repacked({"data.pkl": content.replace(old, b"X" + len(key).to_bytes(4, "little") + key.encode())})


@contextlib.contextmanager
def _no_larger_than(size: int):
    """Any file that this process writes; more is an OSError, which stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(ToodError, match=r"is larger than|no file of its manifest"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def _shard(*members: Callable[[Ground], tuple[tarfile.TarInfo, bytes]]) -> Callable[[Ground], Any]:
    """A packed data set whose shard holds these members; its manifest lists train/a.png alone, and that in any size."""

    def attempt(ground: Ground) -> None:
        from pipeline.data.fetch import Fetch
        from pipeline.data.manifest import read_manifest
        from pipeline.data.room import Place as Room
        from pipeline.data.room import leave_all

        data = tar(*(make(ground) for make in members))
        name, served = f"shards/{hashlib.sha256(data).hexdigest()}.tar", ground.inside / "served"
        put(ground, f"served/{name}", data)
        files = {"train/a.png": [1, hashlib.sha256(b"x").hexdigest(), 0]}
        shards = [[name, len(data), hashlib.sha256(data).hexdigest()]]
        put(ground, "served/manifest.json", json.dumps({"format": "tood-data-1", "shards": shards, "files": files}).encode())
        source = Shown(served)
        try:
            room = Room(ground.inside / "cache", "key")
            with _no_larger_than(1 << 24):
                Fetch(source, read_manifest(source), room, 10**9, lambda line: None).bring(["train/a.png"])
        finally:
            leave_all()
            unpacked = [path.stat().st_size for path in (ground.inside / "cache/key/files").rglob("*") if path.is_file()]
            assert sum(unpacked) <= 1, f"{sum(unpacked)} bytes were kept of a file that should have one"

    return attempt


def _sparse(ground: Ground) -> tuple[tarfile.TarInfo, bytes]:
    """A file that lies in the archive as a few bytes, and unfolds to a thousand million of them."""
    info = tarfile.TarInfo("train/a.png")
    content = b"1\n0\n1\n".ljust(512, b"\0") + b"x" * 512
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": str(10**9),
        "GNU.sparse.name": "train/a.png",
    }
    info.size = len(content)
    return info, content


def _big(ground: Ground) -> tuple[tarfile.TarInfo, bytes]:
    return member("train/a.png", b"\0" * (4 << 20))


ARCHIVES = {
    "zip-slip": Attack("a torch file whose entries leave the folder", imported(_slip)),
    "zip-slip-key": Attack("a tensor whose memory lies at a path outside", imported(_slipping_key)),
    "tar-parent": Attack("a shard's member that leaves the folder", _shard(lambda g: member(f"../../../../../..{g.trap}"))),
    "tar-absolute": Attack("a shard's member by its absolute path", _shard(lambda g: member(str(g.trap)))),
    "tar-link": Attack("a link to elsewhere, then a file through it", _shard(lambda g: member("train", b"", tarfile.SYMTYPE, str(g.trap.parent)), lambda g: member(f"train/{g.trap.name}"))),
    "tar-link-by-name": Attack("a link by a listed file's name", _shard(lambda g: member("train/a.png", b"", tarfile.SYMTYPE, str(g.trap)))),
    "tar-hard-link": Attack("a hard link by a listed file's name", _shard(lambda g: member("train/a.png", b"", tarfile.LNKTYPE, str(g.sound / "tiny.yaml")))),
    "tar-device": Attack("a device by a listed file's name", _shard(lambda g: member("train/a.png", b"", tarfile.CHRTYPE))),
    "tar-pipe": Attack("a pipe by a listed file's name", _shard(lambda g: member("train/a.png", b"", tarfile.FIFOTYPE))),
    "tar-folder": Attack("a folder by a listed file's name", _shard(lambda g: member("train/a.png", b"", tarfile.DIRTYPE))),
    "tar-sparse": Attack("a member of a few bytes that unfolds to a thousand million", _shard(_sparse)),
    "tar-larger": Attack("a member four million times as large as its manifest says", _shard(_big)),
}  # fmt: skip
