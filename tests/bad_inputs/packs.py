"""Packed data sets at an address, and folders that are to be packed or converted."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, Cases, Place, text

HASH = "0" * 64


def manifest(what: str, content: Any, says: str) -> Case:
    """A manifest beside data at an address."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()

    def load(place: Place):
        from pipeline.data.manifest import parse_manifest

        return parse_manifest((place.folder / "manifest.json").read_bytes(), "https://host/data/manifest.json")

    return Case(what, text("manifest.json", raw), load, "https://host/data/manifest.json", says)


def listed(what: str, says: str, files: Any = None, shards: Any = (), form: Any = "tood-data-1") -> Case:
    return manifest(what, {"format": form, "shards": shards, "files": {} if files is None else files}, says)


def member(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def shard(what: str, content: Callable[[], bytes], says: str, expected: bytes = b"x") -> Case:
    """A data set in a store, packed into one shard of this content, which should hold train.json and a.png."""

    def make(place: Place) -> None:
        served, data = place.folder / "served", content()
        name = f"shards/{hashlib.sha256(data).hexdigest()}.tar"
        (served / "shards").mkdir(parents=True)
        (served / name).write_bytes(data)
        split = json.dumps({"images": [{"file_name": "a.png"}]}).encode()
        (served / "train.json").write_bytes(split)
        files = {
            "train.json": [len(split), hashlib.sha256(split).hexdigest(), None],
            "train/a.png": [len(expected), hashlib.sha256(expected).hexdigest(), 0],
        }
        whole = {"format": "tood-data-1", "shards": [[name, len(data), hashlib.sha256(data).hexdigest()]], "files": files}
        (served / "manifest.json").write_text(json.dumps(whole))

    return Case(what, make, _fetch, "shards/", says)


def _fetch(place: Place):
    from pipeline.data.fetch import Fetch
    from pipeline.data.manifest import read_manifest
    from pipeline.data.room import Place as Room
    from pipeline.data.room import leave_all

    source = Shown(place.folder / "served")
    try:
        room = Room(place.folder / "cache", "key")
        Fetch(source, read_manifest(source), room, 10**9, lambda line: None).bring(["train.json", "train/a.png"])
    finally:
        leave_all()
        written = {path.name for path in (place.folder / "cache/key/files").rglob("*") if path.is_file()}
        assert written <= {"train.json", "a.png"}
        shutil.rmtree(place.folder / "cache")


class Shown:
    """A folder as a bucket or a web server shows it."""

    def __init__(self, folder: Path):
        self.folder, self.url = folder, "s3://bucket/data"

    def info(self, name: str):
        raise AssertionError("everything is in the manifest")

    def chunks(self, name: str, start: int = 0, version: str | None = None):
        yield (self.folder / name).read_bytes()[start:]

    def listing(self, folder: str = "") -> None:
        return None


def packing(what: str, make: Callable[[Path], Any], where: str, says: str) -> Case:
    def prepare(place: Place) -> None:
        (place.folder / "data").mkdir()
        make(place.folder / "data")

    def load(place: Place):
        from pipeline.data.pack import pack

        pack(place.folder / "data", str(place.folder / "out"), say=lambda line: None)

    return Case(what, prepare, load, where, says, "data pack --root {folder}/data --output {out}")


def voc(what: str, xml: str, says: str) -> Case:
    def make(place: Place) -> None:
        shutil.copy(place.sound / "data/val/1.png", place.folder / "a.png")
        (place.folder / "a.xml").write_text(xml)

    def load(place: Place):
        from tood.data.convert import convert_voc

        convert_voc(place.folder, place.folder, None, place.folder / "out")

    return Case(
        what, make, load, "{folder}/a.xml", says, "data convert voc --images {folder} --annotations {folder} --output {out}"
    )


def yolo(what: str, content: str, says: str, labels: str = "0 0.5 0.5 0.2 0.2\n", where: str = "{folder}/data.yaml") -> Case:
    def make(place: Place) -> None:
        for folder in ("images", "labels"):
            (place.folder / folder / "train").mkdir(parents=True)
        shutil.copy(place.sound / "data/val/1.png", place.folder / "images/train/a.png")
        (place.folder / "labels/train/a.txt").write_text(labels)
        (place.folder / "data.yaml").write_text(content)

    def load(place: Place):
        from tood.data.convert_yolo import convert_yolo

        convert_yolo(place.folder, place.folder / "out")

    return Case(what, make, load, where, says, "data convert yolo --root {folder} --output {out}")


def roboflow(what: str, says: str, where: str = "train/_annotations.coco.json", **parts: Any) -> Case:
    """An export in COCO's form with one fault."""

    def make(place: Place) -> None:
        (place.folder / "train").mkdir()
        shutil.copy(place.sound / "data/val/1.png", place.folder / "train/1.png")
        content = {
            "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 64}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
            "categories": [{"id": 0, "name": "all"}, {"id": 1, "name": "a", "supercategory": "all"}],
        }
        (place.folder / "train/_annotations.coco.json").write_text(json.dumps(content | parts))

    def load(place: Place):
        from tood.data.convert_roboflow import convert_roboflow

        convert_roboflow(place.folder, place.folder / "out")

    return Case(what, make, load, where, says, "data convert roboflow --root {folder} --output {out}")


BOMB = (
    "names: [a]\n"
    + "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
)
OBJECT = "<annotation><object><name>cat</name><bndbox>{}</bndbox></object></annotation>"
ONE = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
LABELS = "{folder}/labels/train/a.txt:1"
CASES: Cases = {
    "pack-manifest-empty": manifest("an empty manifest", b"", "not a manifest"),
    "pack-manifest-list": manifest("a list", [], "not a manifest"),
    "pack-manifest-deep": manifest("ten thousand lists in each other", b"[" * 10_000, "not a manifest"),
    "pack-manifest-binary": manifest("bytes that are no text", b"\x80\xff" * 9, "not a manifest"),
    "pack-format": listed("the format of a later version", "its format is 'tood-data-9'", form="tood-data-9"),
    "pack-files-list": listed("a list of files", "not a manifest", files=["a"]),
    "pack-name-parent": listed("a file that leaves the folder", "'../a' is not an object name", files={"../a": [1, HASH]}),
    "pack-name-absolute": listed("a file by its absolute path", "'/a' is not an object name", files={"/a": [1, HASH]}),
    "pack-name-nul": listed("a NUL in a file's name", "is not an object name", files={"a\0b": [1, HASH]}),
    "pack-size-negative": listed("a negative size", "'a' has the size -1", files={"a": [-1, HASH]}),
    "pack-size-text": listed("a size that is a text", "'a' has the size '1'", files={"a": ["1", HASH]}),
    "pack-hash": listed("a hash that is none", "'a' has the sha256 'abc'", files={"a": [1, "abc"]}),
    "pack-short-entry": listed("an entry without its hash", "not a manifest", files={"a": [1]}),
    "pack-shard-unknown": listed("a shard that there is not", "'a' is in shard 3", files={"a": [1, HASH, 3]}),
    "pack-shard-name": listed("a shard that leaves the folder", "'../s' is not an object name", shards=[["../s", 1, HASH]]),
    "pack-file-and-folder": listed("a file that is a folder too", "'a' is a file and a folder", files={"a": [1, HASH], "a/b": [1, HASH]}),
    "shard-not-tar": shard("a shard that is no tar", lambda: b"hello" * 200, "not a readable tar file"),
    "shard-cut": shard("a shard cut in the middle", lambda: tar(member("train/a.png", b"x" * 9000))[:1000], "", b"x" * 9000),
    "shard-empty": shard("a shard without the file", lambda: tar(), "lacks 'train/a.png'"),
    "shard-other-file": shard("a shard with a file that nobody listed", lambda: tar(member("evil.py"), member("train/a.png")), "'evil.py', which is no file of its manifest"),
    "shard-twice": shard("a shard with the file twice", lambda: tar(member("train/a.png"), member("train/a.png")), "which is no file of its manifest"),
    "shard-other-content": shard("a shard with another content", lambda: tar(member("train/a.png", b"y")), "has the sha256"),
    "packing-missing": Case(
        "no folder",
        lambda place: None,
        lambda place: packing("", lambda folder: None, "", "").load(place),
        "{folder}/data",
        "no such folder",
        "data pack --root {folder}/data --output {out}",
    ),
    "packing-empty": packing("an empty folder", lambda folder: None, "{folder}/data", "holds no file"),
    "packing-link": packing("a link among the files", lambda folder: (folder / "a").symlink_to("/etc/hostname"), "a: a link", "copy what it leads to"),
    "packing-pipe": packing("a pipe among the files", lambda folder: os.mkfifo(folder / "a"), "a: not a plain file", "remove it"),
    "packing-name": packing("a name that no store takes", lambda folder: (folder / "a\\b").write_text("x"), "a\\\\b", "is not an object name"),
    "packing-manifest": packing("a file of the manifest's name", lambda folder: (folder / "manifest.json").write_text("x"), "manifest.json", "rename it"),
    "voc-not-xml": voc("a text that is no XML", "hello", "not XML"),
    "voc-doctype": voc("entities that explode", '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>', "has a DOCTYPE"),
    "voc-entity": voc("an entity that reads a file", '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation>&b;</annotation>', "has a DOCTYPE"),
    "voc-corners": voc("an object without corners", OBJECT.format(""), "give it a name and four numbers"),
    "voc-nan": voc("a corner that is no number", OBJECT.format("<xmin>nan</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax>"), "give it a name and four numbers"),
    "yolo-no-names": yolo("no class names", "path: .\n", "`names`", where="{folder}"),
    "yolo-names-twice": yolo("two classes of one name", "names: [a, a]\n", "'a' twice", where="{folder}"),
    "yolo-tag": yolo("a tag that calls a function", "names: !!python/object/apply:os.system [id]\n", "tag"),
    "yolo-bomb": yolo("aliases that stand for ten thousand million values", BOMB, "aliases written out"),
    "yolo-deep": yolo("ten thousand lists in each other", "names: " + "[" * 10_000, "nested more than"),
    "yolo-folder-outside": yolo("a split that leaves the folder", "names: [a]\ntrain: ../../etc\n", "leaves", where="data.yaml: train"),
    "yolo-folder-absolute": yolo("a split by its absolute path", "names: [a]\ntrain: /etc\n", "leaves", where="data.yaml: train"),
    "yolo-folder-missing": yolo("a split that is not there", "names: [a]\ntrain: none\n", "no such folder or file", where="data.yaml: train"),
    "yolo-class-unknown": yolo("a class that there is not", "names: [a]\n", "class '7' is not one of 0 to 0", "7 0.5 0.5 0.2 0.2\n", LABELS),
    "yolo-numbers": yolo("three numbers in place of four", "names: [a]\n", "expected 4 of a box", "0 0.5 0.5 0.2\n", LABELS),
    "yolo-nan": yolo("what is no number", "names: [a]\n", "holds what is no number", "0 nan 0.5 0.2 0.2\n", LABELS),
    "roboflow-no-folders": Case(
        "a folder without splits",
        lambda place: None,
        lambda place: roboflow("", "").load(place),
        "{folder}",
        "has none of the folders",
        "data convert roboflow --root {folder} --output {out}",
    ),
    "roboflow-list": roboflow("a list of no use", "expected an object with lists", images=None),
    "roboflow-category": roboflow("a list for a category id", "category_id [1] is not in the file", annotations=[ONE | {"category_id": [1]}]),
    "roboflow-image": roboflow("an object on no image", "image_id 7 is not in the file", annotations=[ONE | {"image_id": 7}]),
    "roboflow-box": roboflow("a box of three numbers", "is not four finite numbers", annotations=[ONE | {"bbox": [1, 2, 3]}]),
    "roboflow-name-parent": roboflow("a file name that leaves the folder", "leaves", images=[{"id": 1, "file_name": "../../x.png"}]),
    "roboflow-name-surrogate": roboflow("half a character in a file name", "is no name of a file", images=[{"id": 1, "file_name": "\ud800.png"}]),
    "roboflow-name-missing": roboflow("no file name", "needs an id of its own and a file_name", images=[{"id": 1}]),
    "roboflow-category-name": roboflow("a category without a name", "needs a whole number as id and a name", categories=[{"id": 1}]),
    "yolo-pixels": yolo("pixels in place of shares", "names: [a]\n", "is not in shares", "0 30 30 10 10\n", LABELS),
}  # fmt: skip
