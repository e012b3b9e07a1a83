"""Files that `torch.save` has written, read without running anything in them: what they hold, and their tensors on demand.

Two forms: a ZIP archive (torch 1.6 and later), and the stream of pickles before it, which model zoos still publish.

    ZIP      NAME/data.pkl the content, NAME/data/KEY the memory of a tensor, as it lies
    stream   pickles: a magic number, a version, facts of the machine, the content, the keys; then for each key the count
             of its numbers (int64) and the numbers

The content is a pickle, which `tood.mmdet.pickled` reads as data: a tensor is a call of torch's own functions in it.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tood.errors import CheckpointError
from tood.mmdet.pickled import Call, Name, Reference, read_pickle

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the stream
MAX_CONTENT = 256 * 2**20  # bytes of the content's pickle in a ZIP; a training of a million steps logs some 100 MiB
_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
# What zipfile raises for an archive whose parts contradict each other.
_BAD_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error, OverflowError, zlib.error)
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"


class Storage(NamedTuple):
    """The memory that a tensor looks at."""

    key: str
    dtype: torch.dtype
    count: int  # numbers

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


class TorchFile(NamedTuple):
    path: Path
    content: Any  # as `tood.mmdet.pickled` reads it
    read: Callable[[Storage], bytes]
    size: int  # bytes of the file

    def tensors(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors among the values; what is none is left out.

        Raises CheckpointError for a tensor that reaches beyond its memory, and for tensors that together are larger than
        the file: views of one memory could make any size out of a few bytes.
        """
        views = {name: _view(value, f"{self.path}: {name}") for name, value in values.items()}
        views = {name: view for name, view in views.items() if view is not None}
        memories = {view.storage for view in views.values()}
        for bytes_together in (sum(s.bytes for s in memories), sum(view.bytes for view in views.values())):
            if bytes_together > self.size:
                raise CheckpointError(f"{self.path}: its tensors are larger than the file; it is damaged or hostile")
        tensors = {}
        for memory in memories:  # each is read once
            data = self.read(memory)
            tensors |= {name: view.of(data) for name, view in views.items() if view.storage == memory}
        return {name: tensors[name] for name in views}


def _said(error: Exception) -> str:
    """A name in it that is no text, or its end before its time, say little themselves."""
    return "its parts contradict each other" if isinstance(error, UnicodeDecodeError | EOFError) else str(error)


def is_tensor(value: Any) -> bool:
    return isinstance(value, Call) and value.path in (_TENSOR, _PARAMETER)


def read_torch_file(path: Path) -> TorchFile:
    """Raises CheckpointError for what is not such a file, or damaged. Tensors are read when they are asked for."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(2)
        if start == b"PK":
            return _open_zip(path, size)
        if start[:1] == b"\x80":
            return _open_stream(path, size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}; name another file") from None
    except _BAD_ZIP as error:
        raise CheckpointError(f"{path}: damaged or foreign: {_said(error)}; get it again") from None
    raise CheckpointError(
        f"{path}: not a file that torch.save writes; one older than torch 0.1.10, or of another program, is not read; "
        "save it again with torch.save(state_dict, FILE)"
    )


# -- the two forms ---------------------------------------------------------------------------------------------------


def _open_zip(path: Path, size: int) -> TorchFile:
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(found) != 1:
            raise CheckpointError(
                f"{path}: a ZIP archive, but not of torch.save: it holds {len(found)} data.pkl, not 1; give another"
            )
        folder = found[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in archive.namelist():
            raise CheckpointError(f"{path}: a TorchScript archive, which is code, and not read; give its state_dict")
        if f"{folder}byteorder" in archive.namelist() and _read_entry(archive, f"{folder}byteorder", path, 16) != b"little":
            raise CheckpointError(f"{path}: written on a big-endian machine; save it again on a usual one")
        content, _ = read_pickle(io.BytesIO(_read_entry(archive, found[0], path, MAX_CONTENT)), str(path))

    def read(storage: Storage) -> bytes:
        wanted = storage.bytes
        try:
            with zipfile.ZipFile(path) as archive:
                data = _read_entry(archive, f"{folder}data/{storage.key}", path, wanted)
        except (OSError, *_BAD_ZIP) as error:
            raise CheckpointError(f"{path}: damaged: {_said(error)}; get it again") from None
        if len(data) != wanted:
            raise CheckpointError(f"{path}: {storage.key} holds {len(data)} bytes, {wanted} expected; get it again")
        return data

    return TorchFile(path, content, read, size)


def _read_entry(archive: zipfile.ZipFile, name: str, path: Path, limit: int) -> bytes:
    """torch stores without compressing, so that an entry cannot unfold to more than the file holds."""
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise CheckpointError(f"{path}: {name} is missing in it; get it again") from None
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise CheckpointError(f"{path}: {name} is compressed, as torch.save never does; unpack it and save it anew")
    if entry.file_size > limit:
        raise CheckpointError(f"{path}: {name} holds {entry.file_size} bytes, no more than {limit} are expected")
    return archive.read(entry)


def _open_stream(path: Path, size: int) -> TorchFile:
    where = str(path)
    with open(path, "rb") as file:
        if read_pickle(file, where)[0] != MAGIC:
            raise CheckpointError(f"{path}: a pickle, but not of torch.save; save it again with torch.save(state_dict, FILE)")
        version, facts = read_pickle(file, where)[0], read_pickle(file, where)[0]
        if version != VERSION or not (isinstance(facts, dict) and facts.get("little_endian") is True):
            raise CheckpointError(f"{path}: version {version!r} of torch.save's old form, which is not known here; save it anew")
        content, references = read_pickle(file, where)
        keys, _ = read_pickle(file, where)
        dtypes = {str(s.key): s.dtype for s in (_storage(r, where) for r in references) if s is not None}
        places: dict[str, tuple[int, int]] = {}
        for key in keys if isinstance(keys, list) else []:
            count = int.from_bytes(file.read(8), "little", signed=True)
            if str(key) not in dtypes or count < 0:
                raise CheckpointError(f"{path}: damaged or foreign: it does not say what {key!r:.40} is; get it again")
            places[str(key)] = file.tell(), count
            file.seek(count * dtypes[str(key)].itemsize, 1)

    def read(storage: Storage) -> bytes:
        place, count = places.get(storage.key, (size, 0))
        wanted = storage.bytes
        if count != storage.count or storage.dtype != dtypes.get(storage.key) or place + wanted > size:
            raise CheckpointError(f"{path}: damaged: {storage.key} is not whole; get it again")
        try:
            with open(path, "rb") as file:
                file.seek(place)
                return file.read(wanted)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None

    return TorchFile(path, content, read, size)


# -- tensors ---------------------------------------------------------------------------------------------------------


class _View(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def of(self, memory: bytes) -> Tensor:
        if not self.storage.count:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        flat = torch.frombuffer(bytearray(memory), dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.strides, self.offset).clone(memory_format=torch.contiguous_format)


def _view(value: Any, where: str) -> _View | None:
    """What a tensor looks at, checked; None for what is not a tensor."""
    for _ in range(2):  # a parameter holds a tensor
        if isinstance(value, Call) and value.path == _PARAMETER and type(value.arguments) is tuple and value.arguments:
            value = value.arguments[0]
    if not isinstance(value, Call) or value.path != _TENSOR:
        return None
    arguments = value.arguments
    storage = _storage(arguments[0], where) if type(arguments) is tuple and len(arguments) >= 4 else None
    if storage is None:
        raise CheckpointError(f"{where}: a tensor of a kind that is not read; save it as float32")
    offset, shape, strides = arguments[1:4]
    numbers = [offset, *shape, *strides] if type(shape) is tuple and type(strides) is tuple else [None]
    if not all(type(n) is int and 0 <= n < 2**40 for n in numbers) or len(shape) != len(strides) or len(shape) > 8:
        raise CheckpointError(f"{where}: a tensor of no possible shape; the file is damaged or hostile")
    count = math.prod(shape)
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) if count else 0
    if last >= max(storage.count, 1) or count > storage.count:
        raise CheckpointError(f"{where}: a tensor that reaches beyond its memory; the file is damaged or hostile")
    return _View(storage, offset if count else 0, shape, strides)


def _storage(reference: Any, where: str) -> Storage | None:
    """("storage", type, key, device, count) of ours; the stream has a sixth, the part that is meant, None for all."""
    key = reference.key if isinstance(reference, Reference) else None
    if type(key) is not tuple or len(key) not in (5, 6) or key[0] != "storage" or (len(key) == 6 and key[5] is not None):
        return None
    kind, name, count = key[1], key[2], key[4]
    if not isinstance(kind, Name) or type(count) is not int or not 0 <= count < 2**40 or type(name) not in (str, int):
        return None
    dtype = _DTYPES.get(kind.path.removeprefix("torch.").removeprefix("cuda.").removesuffix("Storage"))
    return None if dtype is None else Storage(str(name), dtype, count)
