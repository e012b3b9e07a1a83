"""Checkpoints of mmdetection and of TOOD's first code: files of torch.save in both forms, and what is named like one.

Those that would run something are in `tests.bad_inputs.hostile`.
"""

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

from tests.bad_inputs.case import Case, Cases, Place

COMMAND = "import {folder}/x.pth --output {out}"


def _load(place: Place):
    from pipeline.exchange import import_model

    return import_model(place.folder / "x.pth", place.folder / "out", config=None, settings=[], classes=None, register=None)


def file(what: str, content: Callable[[], bytes], says: str, through_command: bool = False) -> Case:
    def make(place: Place) -> None:
        (place.folder / "x.pth").write_bytes(content())

    return Case(what, make, _load, "{folder}/x.pth", says, COMMAND if through_command else "")


def saved(content: Any, as_zip: bool = True) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content() if callable(content) else content, buffer, _use_new_zipfile_serialization=as_zip)
    return buffer.getvalue()


def archive(entries: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as made:
        for name, content in entries.items():
            made.writestr(name, content)
    return buffer.getvalue()


def repacked(replace: dict[str, bytes | None]) -> bytes:
    """A sound file with entries changed, added or (None) left out, by the ends of their names."""
    with zipfile.ZipFile(io.BytesIO(_sound())) as sound:
        entries = {name: sound.read(name) for name in sound.namelist()}
    folder = next(iter(entries)).partition("/")[0]
    for name, content in replace.items():
        entries[f"{folder}/{name}"] = content
    return archive({name: content for name, content in entries.items() if content is not None})


def _sound() -> bytes:
    import torch

    return saved({"state_dict": {"bbox_head.tood_cls.weight": torch.ones(2, 4, 3, 3), "x": torch.ones(3)}, "meta": {"epoch": 1}})


def _tensors(**named: Any) -> Callable[[], dict]:
    def make() -> dict:
        import torch

        return {"state_dict": {name.replace("__", "."): torch.ones(shape) for name, shape in named.items()}}

    return make


def _damaged(at: bytes, by: bytes) -> bytes:
    data = _sound()
    start = data.rindex(at)
    return data[:start] + by + data[start + len(by) :]


MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
DATA = "damaged or foreign"
CASES: Cases = {
    "torch-missing": Case("no file", lambda place: None, _load, "{folder}/x.pth", "No such file", COMMAND),
    "torch-empty": file("an empty file", lambda: b"", "not a file that torch.save writes"),
    "torch-text": file("a text", lambda: b"model = dict(type='TOOD')", "not a file that torch.save writes", True),
    "torch-pickle": file("a pickle, but not of torch.save", lambda: pickle.dumps({"a": 1}), "a pickle, but not of torch.save"),
    "torch-cut-zip": file("a ZIP cut in the middle", lambda: _sound()[:400], DATA, True),
    "torch-cut-stream": file("a stream cut in the middle", lambda: saved({"a": 1}, as_zip=False)[:60], DATA),
    "torch-zip-end-alone": file("the end of a ZIP alone", lambda: b"PK\x05\x06" + b"\0" * 18, "it holds 0 data.pkl"),
    "torch-zip-of-others": file("a ZIP of other files", lambda: archive({"a.txt": b"x"}), "it holds 0 data.pkl"),
    "torch-zip-two-contents": file("a ZIP of two contents", lambda: archive({"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "it holds 2 data.pkl"),
    "torch-zip-name-no-text": file("a ZIP with a name that is no text", lambda: _bad_name(), DATA),
    "torch-zip-wrong-crc": file("a ZIP whose content is not what its sum says", lambda: _damaged(b"epoch", b"epoc!"), ""),
    "torch-zip-packed": file("a ZIP that unfolds", lambda: archive({"x/data.pkl": b"\0" * 2**20}, zipfile.ZIP_DEFLATED), "is compressed"),
    "torch-zip-without-memory": file("a ZIP that lacks a tensor's memory", lambda: repacked({"data/0": None}), "is missing in it"),
    "torch-zip-short-memory": file("a ZIP with too little memory for a tensor", lambda: repacked({"data/0": b"\0\0"}), ""),
    "torch-zip-big-endian": file("a file of a big-endian machine", lambda: repacked({"byteorder": b"big"}), "big-endian"),
    "torch-script": file("TorchScript, which is code", lambda: archive({"x/data.pkl": b"N.", "x/constants.pkl": b"N."}), "TorchScript", True),
    "torch-stream-version": file("a stream of another version", lambda: MAGIC + pickle.dumps(2000, 2) + pickle.dumps({}, 2), "version 2000"),
    "torch-stream-huge-text": file("a stream with a text of a million million bytes", lambda: MAGIC + b"\x80\x04\x8d" + (10**12).to_bytes(8, "little"), DATA),
    "torch-pickle-empty": file("a ZIP with an empty pickle", lambda: repacked({"data.pkl": b""}), DATA),
    "torch-pickle-nonsense": file("a ZIP with a pickle of nonsense", lambda: repacked({"data.pkl": b"R."}), DATA),
    "torch-pickle-registry": file("a pickle that asks Python's registry", lambda: repacked({"data.pkl": b"\x80\x02\x82\x01."}), "has no place in a checkpoint"),
    "torch-list": file("a list of numbers", lambda: saved([1, 2]), "holds an object (list), not a state dict"),
    "torch-module": file("a whole module", lambda: saved(_module), "not a state dict", True),
    "torch-no-tensors": file("a dictionary without tensors", lambda: saved({"epoch": 3}), "no state dict of tensors"),
    "torch-other-network": file("a network that is no detector", lambda: saved(_tensors(conv1__weight=(2, 2))), "no detector that is known here", True),
    "torch-half-a-detector": file("a head without its body", lambda: saved(_tensors(bbox_head__tood_cls__weight=(80, 256, 3, 3))), ""),
    "torch-safetensors-name": Case(
        "a pickle by the name of a safetensors file",
        lambda place: (place.folder / "x.safetensors").write_bytes(_sound()),
        lambda place: _load_file(place),
        "{folder}/x.safetensors",
        "",
        "import {folder}/x.safetensors --output {out}",
    ),
}  # fmt: skip


def _module():
    import torch

    return torch.nn.Linear(2, 2)


def _load_file(place: Place):
    from tood.mmdet.files import read_foreign

    return read_foreign(place.folder / "x.safetensors")


def _bad_name() -> bytes:
    """The archive's directory says that a name is UTF-8, which it is not."""
    data = bytearray(archive({"ä/data.pkl": b"N."}))
    place = data.rindex("ä".encode())
    data[place : place + 2] = b"\xff\xff"
    return bytes(data)
