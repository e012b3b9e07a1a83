"""A safetensors file that describes and checks itself, and the canonical JSON that manifests share with its header.

The header's metadata holds `tood`, an account of the content as JSON, and the sha256 of account, names, shapes, types
and data. Equal input gives equal bytes. Nothing is pickled.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from tood.errors import CheckpointError

FORMAT = 1
MAX_JSON = 16 * 2**20  # bytes of a header or of a manifest


# -- writing ---------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """The value as it will be read back from JSON."""
    try:
        return json.loads(canonical(value))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config, metrics and state must be plain JSON values, numbers finite: {error}") from None


def canonical(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=indent).encode()


def pack(tensors: dict[str, Tensor], account: dict) -> bytes:
    """A safetensors file whose header holds the account and a sha256 of account, shapes, types and data."""
    # Copies, because safetensors refuses views and memory that two tensors share.
    apart = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    header, data = _split(safetensors.torch.save(apart), "the tensors to be saved")
    header["__metadata__"] = {"tood": canonical(account).decode()}
    header["__metadata__"]["sha256"] = _content_sha256(header, data)
    text = canonical(header)
    text += b" " * (-len(text) % 8)  # the format keeps the data aligned to 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, data])


def _content_sha256(header: dict, data: memoryview) -> str:
    metadata = {"tood": header["__metadata__"]["tood"]}
    content = hashlib.sha256(canonical(header | {"__metadata__": metadata}))
    content.update(data)
    return content.hexdigest()


# -- reading; `where` is the path that errors name -------------------------------------------------------------------


def parse_json(text: bytes | str, where: Path | str) -> Any:
    """Strict JSON: no NaN and no number that overflows. Raises CheckpointError."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        said = {UnicodeDecodeError: "no text in UTF-8", RecursionError: "nested too deep"}.get(type(error), error)
        raise CheckpointError(f"{where}: damaged or foreign: not JSON where it must be: {said}; get it again") from None


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def _split(data: bytes, where: Path | str) -> tuple[dict, memoryview]:
    """The header and the tensor data of a safetensors file: 8 bytes of length, JSON, data."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_JSON, len(data) - 8):
        pickled = data[:4] == b"PK\x03\x04" or data[:1] == b"\x80"
        hint = "; it looks like a pickle, which can run code, and was not opened" if pickled else ""
        raise CheckpointError(f"{where}: not a whole safetensors file{hint}; get it again, or give another")
    header = parse_json(data[8 : 8 + length], where)
    if not isinstance(header, dict):
        raise CheckpointError(f"{where}: not a safetensors file: its header is not an object; get it again")
    return header, memoryview(data)[8 + length :]


def account_of(data: bytes, where: Path | str) -> dict[str, Any]:
    """The account in the header of a file of ours."""
    metadata = _split(data, where)[0].get("__metadata__")
    text = metadata.get("tood") if isinstance(metadata, dict) else None
    account = parse_json(text, where) if isinstance(text, str) else None
    if not isinstance(account, dict):
        raise CheckpointError(
            f"{where}: safetensors, but not a model of ours: its header lacks the account `tood`; use `tood import`"
        )
    check_format(account, where)
    return account


def check_format(account: dict, where: Path | str) -> None:
    if type(account.get("format")) is not int or account["format"] != FORMAT:
        raise CheckpointError(f"{where}: format {account.get('format')!r}, this version reads {FORMAT}; update tood")


def tensors_of(data: bytes, where: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{where}: damaged or foreign tensors: {error}; get it again") from None


def check_content(data: bytes, where: Path | str) -> None:
    """Raises CheckpointError unless the content has the sha256 that its own header states."""
    header, tensors = _split(data, where)
    account_of(data, where)
    if header["__metadata__"].get("sha256") != _content_sha256(header, tensors):
        raise CheckpointError(f"{where}: altered or damaged: not the sha256 that its header states; get it again")
