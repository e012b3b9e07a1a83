"""One recorded case: what its JSON says, its arrays, and comparison with what they allow."""

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tood.data.targets import Targets, pad_targets
from tood.priors import STRIDES

LARGEST: dict[tuple[str, str], float] = {}  # (kind, quantity) -> largest deviation seen, in shares of what is allowed


@dataclass(frozen=True)
class Case:
    path: Path  # the JSON, or the .npz where arrays stand alone
    name: str  # the path inside the folder of cases
    kind: str
    entry: str = ""  # the part meant, in a file that holds several

    @property
    def spec(self) -> dict[str, Any]:
        return read_spec(self.path) if self.path.suffix == ".json" else {}

    @property
    def arrays(self) -> Any:
        """The arrays beside the JSON, by name; read when asked for."""
        return _read_arrays(self.path.with_suffix(".npz"))

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def levels(self, name: str) -> list[Tensor]:
        """The arrays `name`_P3 .. `name`_P7."""
        return [self.tensor(f"{name}_P{level}") for level in range(3, 3 + len(STRIDES))]

    def flat(self, name: str) -> Tensor:
        """The same as one tensor [B, N, C], level after level."""
        return torch.cat([level.flatten(2) for level in self.levels(name)], dim=2).transpose(1, 2)

    def targets(self, prefix: str = "") -> Targets:
        """Objects of the batch: `prefix`gt_bboxes_{i}, `prefix`gt_labels_{i}; gt_bboxes_ignore belongs to every image."""
        count = sum(name.startswith(f"{prefix}gt_labels_") for name in self.arrays)
        boxes, labels = ([self.tensor(f"{prefix}gt_{what}_{i}") for i in range(count)] for what in ("bboxes", "labels"))
        targets = pad_targets(boxes, labels)
        if f"{prefix}gt_bboxes_ignore" in self.arrays:
            crowds = self.tensor(f"{prefix}gt_bboxes_ignore")
            targets = targets._replace(crowds=crowds.expand(count, *crowds.shape))
        return targets

    def close(self, what: str, ours: Any, theirs: Any, allowed: Any) -> None:
        """|ours - theirs| <= allowed (a number or an array) everywhere; shapes equal, no NaN."""
        ours, theirs = _numpy(ours), _numpy(theirs)
        assert ours.shape == theirs.shape, f"{what}: shape {ours.shape}, recorded {theirs.shape}"
        if not ours.size:
            return
        off = np.abs(ours - theirs)
        share = np.where(off == 0, 0.0, off / np.maximum(np.broadcast_to(allowed, off.shape), 1e-300))
        share = np.where(np.isnan(share), np.inf, share)
        worst = np.unravel_index(share.argmax(), share.shape)
        place = f" at {tuple(map(int, worst))}" if worst else ""
        assert share[worst] <= 1, (
            f"{what}{place}: {ours[worst]:.9g}, recorded {theirs[worst]:.9g}: {share[worst]:.3g} times what is allowed"
            f" ({(share > 1).sum()} of {share.size} values are off)"
        )
        LARGEST[self.kind, what] = max(LARGEST.get((self.kind, what), 0.0), float(share[worst]))

    def same(self, what: str, ours: Any, theirs: Any) -> None:
        """Equal, value for value."""
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape, f"{what}: shape {ours.shape}, recorded {theirs.shape}"
        different = np.argwhere(ours != theirs)
        assert not len(different), (
            f"{what}: {len(different)} of {ours.size} differ, the first at {different[0].tolist()}: "
            f"{ours[tuple(different[0])]}, recorded {theirs[tuple(different[0])]}"
        )


@functools.cache
def read_spec(path: Path) -> Any:
    return json.loads(path.read_text())


def relative(theirs: Any, share: float, floor: float = 0.0) -> Any:
    """What a relative tolerance allows of each value."""
    return np.maximum(share * np.abs(_numpy(theirs)), floor)


def of_largest(theirs: Any, share: float) -> float:
    """What a tolerance relative to the largest value allows."""
    theirs = _numpy(theirs)
    return share * float(np.abs(theirs).max()) if theirs.size else 0.0


def gradient(theirs: Any) -> Any:
    """What is allowed of the gradient of a recorded loss: 1e-6, relative 1e-4 above 1."""
    theirs = np.abs(_numpy(theirs))
    return np.where(theirs > 1, 1e-4 * theirs, 1e-6)


def norms(tensors: Iterable[Tensor]) -> list[float]:
    return [t.double().norm().item() for t in tensors]


def _numpy(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().numpy()
    return np.asarray(values, dtype=np.float64)


@functools.lru_cache(maxsize=8)
def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
