"""Files of torch.save, both forms: the tensors come out equal; hostile and damaged ones are one clear error."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from tood.errors import CheckpointError
from tood.mmdet.torchfile import MAGIC, read_torch_file

BOTH = pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "stream"])
STATE = {
    "weight": torch.arange(12.0).reshape(3, 4),
    "view": torch.arange(24.0).reshape(4, 6).t()[1:3],
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 3),
    "half": torch.tensor([1.5, -2.0]).half(),
    "brain": torch.tensor([1.5]).bfloat16(),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "text": "no tensor",
}


def save(path: Path, content, as_zip: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    return path


def everything(path: Path) -> dict[str, torch.Tensor]:
    file = read_torch_file(path)
    return file.tensors(file.content)


@BOTH
def test_tensors_come_out_as_they_went_in(as_zip, tmp_path):
    file = read_torch_file(save(tmp_path / "x.pth", {"state_dict": STATE, "meta": {"epoch": 12}}, as_zip))
    tensors = file.tensors(file.content["state_dict"])
    assert list(tensors) == [key for key in STATE if key != "text"]
    for key, tensor in tensors.items():
        assert tensor.dtype == STATE[key].dtype
        assert torch.equal(tensor, STATE[key])
    assert file.content["meta"] == {"epoch": 12}


@BOTH
def test_shared_memory_is_read_once(as_zip, tmp_path):
    row = torch.arange(100.0)
    file = read_torch_file(save(tmp_path / "x.pth", {"a": row[:50], "b": row[50:]}, as_zip))
    tensors = file.tensors(file.content)
    assert torch.equal(torch.cat([tensors["a"], tensors["b"]]), row)


def forged(folder: Path, *, shape=(2, 2), strides=(2, 1), offset=0, count=4, kind=torch.FloatStorage, many=1, numbers=4):
    """A ZIP whose one memory is of `numbers` zeros, and whose content says whatever it likes of it."""

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Memory(), offset, shape, strides, False, {})

    class Memory:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", kind, "0", "cpu", count) if isinstance(value, Memory) else None

    path = folder / "forged.pth"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("x/data.pkl", "w") as file:
            Pickler(file, 2).dump({f"w{i}": Tensor() for i in range(many)})
        archive.writestr("x/data/0", b"\0" * 4 * numbers)
    return path


def test_what_the_forger_makes_is_read_where_it_is_honest(tmp_path):
    file = read_torch_file(forged(tmp_path))
    assert torch.equal(file.tensors(file.content)["w0"], torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("forgery", "message"),
    [
        ({"shape": (3, 2)}, "beyond its memory"),
        ({"offset": 1}, "beyond its memory"),
        ({"offset": -1}, "no possible shape"),
        ({"shape": (-1, 2)}, "no possible shape"),
        ({"strides": (2,)}, "no possible shape"),
        ({"shape": (2**30, 2**30), "strides": (0, 0)}, "beyond its memory"),  # one number seen as many
        ({"shape": (2**60,), "strides": (0,)}, "no possible shape"),
        ({"count": 2**36, "shape": (2**18, 2**18), "strides": (2**18, 1)}, "larger than the file"),
        ({"count": 5}, "holds 16 bytes, 20 expected"),
        (
            {"many": 1000, "numbers": 999, "count": 999, "shape": (999,), "strides": (1,)},
            "larger than the file",
        ),  # a thousand views of one memory
        ({"kind": torch.ComplexFloatStorage}, "w0: a tensor of a kind that is not read"),
    ],
)
def test_forged_tensors_are_refused(forgery, message, tmp_path):
    file = read_torch_file(forged(tmp_path, **forgery))
    with pytest.raises(CheckpointError, match=message):
        file.tensors(file.content)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 2**24)
    with pytest.raises(CheckpointError, match=r"x/data\.pkl is compressed, as torch\.save never does"):
        read_torch_file(path)


def test_a_content_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("tood.mmdet.torchfile.MAX_CONTENT", 100)
    with pytest.raises(CheckpointError, match="no more than 100 are expected"):
        read_torch_file(save(tmp_path / "x.pth", {"state_dict": STATE}, True))


@BOTH
def test_cut_files_are_errors(as_zip, tmp_path):
    data = save(tmp_path / "x.pth", {"a": torch.ones(1000)}, as_zip).read_bytes()
    for length in (0, 1, 2, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "x.pth").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"x\.pth"):
            everything(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89PNG", "not a file that torch.save writes"),
        (pickle.dumps({"a": 1}, 2), "a pickle, but not of torch.save"),
        (pickle.dumps(MAGIC, 2) + pickle.dumps(1002, 2) + pickle.dumps({}, 2), "version 1002"),
        (pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": False}, 2), "old form"),
    ],
)
def test_other_files_are_errors(data, message, tmp_path):
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x/data.pkl", "y/data.pkl"], "holds 2 data.pkl"),
        (["x/other"], "holds 0 data.pkl"),
        (["x/data.pkl", "x/constants.pkl"], "TorchScript archive, which is code"),
    ],
)
def test_other_archives_are_errors(names, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        for name in names:
            archive.writestr(name, b"N.")
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(tmp_path / "x.pth")


def test_a_big_endian_file_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", b"N.")
        archive.writestr("x/byteorder", b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch_file(tmp_path / "x.pth")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_torch_file(tmp_path / "none.pth")
