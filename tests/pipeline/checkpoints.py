"""Small checkpoint folders for tests of storage, which looks at names and hashes and not at tensors."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any


def make_checkpoint(folder: Path, step: Any = 12, seed: int = 0, info: dict | None = None) -> Path:
    """A checkpoint folder with its nested model; other bytes for another `seed`, `info` in the model's manifest."""
    rng = random.Random(seed)
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(rng.randbytes(3000))
    (folder / "training.safetensors").write_bytes(rng.randbytes(2000))
    write_manifest(folder / "model", "model.safetensors", **({"info": info} if info else {}))
    write_manifest(folder, "model/manifest.json", "model/model.safetensors", "training.safetensors", step=step)
    return folder


def write_manifest(folder: Path, *names: str, **values: Any) -> None:
    contents = {name: (folder / name).read_bytes() for name in names}
    files = {name: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for name, c in contents.items()}
    (folder / "manifest.json").write_text(json.dumps({**values, "files": files}))
