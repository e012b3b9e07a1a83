"""The weights of one model into another, whose classes may differ."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tood.errors import CheckpointError


class LoadReport(NamedTuple):
    loaded: tuple[str, ...]  # tensors that hold the weights now
    skipped: tuple[str, ...]  # classification tensors left as they were, but for the rows of `shared_classes`
    shared_classes: tuple[str, ...]  # classes whose rows were copied by name; empty where all classes are the same

    def line(self) -> str:
        if not self.skipped:
            return f"all {len(self.loaded)} tensors loaded"
        kept = f"but for the classes {', '.join(self.shared_classes)}" if self.shared_classes else "the classes are others"
        return f"{len(self.loaded)} tensors loaded, {len(self.skipped)} of the classification start anew ({kept})"


def load_into(
    module: nn.Module,
    weights: dict[str, Tensor],
    *,
    names_from: Sequence[str],
    names: Sequence[str],
    class_layers: tuple[str, ...],
) -> LoadReport:
    """Copy `weights`, of a model of the classes `names_from`, into a module of the classes `names`.

    `class_layers` are the parameter prefixes of the classification predictor, whose tensors have K rows (with A anchors
    a location A * K, anchor by anchor). Where the classes are not the same, the rows of classes with equal names are
    copied and the others left as they were initialised. Everything else has to fit: raises CheckpointError with the
    tensors that are missing, unknown or of another shape, and then leaves the module as it was.
    """
    targets = module.state_dict()
    same = list(names) == list(names_from)
    by_class = set() if same else {key for key in targets.keys() | weights.keys() if _is_under(key, class_layers)}
    _check_fit(targets, weights, by_class)
    shared = [] if same else [name for name in names if name in set(names_from)]
    loaded, skipped, copied = [], [], False
    with torch.no_grad():
        for key, target in targets.items():
            if key not in by_class:
                target.copy_(weights[key])
                loaded.append(key)
                continue
            fits = key in weights and _copy_rows(target, weights[key], shared, list(names), list(names_from))
            copied |= fits
            (loaded if fits and len(shared) == len(names) else skipped).append(key)
    return LoadReport(tuple(loaded), tuple(skipped), tuple(shared) if copied else ())


def require_fit(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raises CheckpointError unless these are the module's own tensors by name and shape; its device may be meta."""
    _check_fit(module.state_dict(), weights, set())


def _copy_rows(target: Tensor, source: Tensor, shared: list[str], names: list[str], names_from: list[str]) -> bool:
    """target [A*K, ...], source [A*K', ...]: copy the rows of the shared classes. False where the shapes do not fit."""
    if not shared:
        return False
    anchors = len(target) // len(names)
    if target.shape[1:] != source.shape[1:] or len(source) != anchors * len(names_from):
        return False
    old = source.unflatten(0, (anchors, len(names_from)))[:, [names_from.index(name) for name in shared]]
    target.unflatten(0, (anchors, len(names)))[:, [names.index(name) for name in shared]] = old.to(target)
    return True


def _check_fit(targets: dict[str, Tensor], weights: dict[str, Tensor], optional: set[str]) -> None:
    problems = [f"{key} is missing" for key in targets if key not in weights and key not in optional]
    for key, source in weights.items():
        if key in optional:
            continue
        if key not in targets:
            problems.append(f"{key} is unknown")
        elif source.shape != targets[key].shape:
            problems.append(f"{key} has the shape {tuple(source.shape)}, not {tuple(targets[key].shape)}")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise CheckpointError(
            f"the weights do not fit this model: {'; '.join(problems[:5])}{more}; use the model section of their recipe"
        )


def _is_under(key: str, layers: tuple[str, ...]) -> bool:
    return any(key == layer or key.startswith(f"{layer}.") for layer in layers)
