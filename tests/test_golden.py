"""Parity with the peer implementation: every recorded case of a folder, run from what its JSON says.

`TOOD_GOLDEN=DIR pytest -m golden` reads another folder of the same format (default: tests/golden). With `-s` it prints the
largest deviation of each quantity, in shares of what is allowed. The folder's format: one JSON and one .npz a case.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.parity import assignment, coco, criteria, dense_heads, detections, extras, heads, images, losses, models
from tests.parity.case import LARGEST, Case, read_spec

FOLDER = Path(os.environ.get("TOOD_GOLDEN") or Path(__file__).parent / "golden")


class Kind(NamedTuple):
    run: Callable[[Case], None]
    entries: Callable[[Any], list[str]] = lambda _spec: [""]  # the parts of one file, each a test of its own


def read_only(case: Case) -> None:
    """Features that other cases of the folder read."""
    assert all(level.isfinite().all() for level in case.levels("feat"))


KINDS = {
    "assign_tal": Kind(assignment.run_task_aligned, assignment.entries),
    "assign_tal_edge": Kind(assignment.run_task_aligned_edge, assignment.entries),
    "assign_atss": Kind(assignment.run_atss, assignment.entries),
    "losses": Kind(criteria.run_loss, criteria.loss_entries),
    "deform": Kind(criteria.run_sampling, criteria.sampling_entries),
    "tood_head": Kind(heads.run),
    "stored_state_dict": Kind(heads.run_stored_state),
    "tood_loss": Kind(losses.run),
    "tood_predict": Kind(detections.run),
    "tood_model": Kind(models.run),
    "tood_steps": Kind(models.run_steps),
    "tood_trajectory": Kind(models.run_trajectory),
    "preprocess": Kind(images.run, images.entries),
    "cocoeval": Kind(coco.run, coco.entries),
    "extras": Kind(extras.run, extras.entries),
    "config": Kind(extras.run_config, extras.config_entries),
    "dense_head": Kind(dense_heads.run),
    "stored_features": Kind(read_only),
}


def collect(folder: Path) -> Iterator[Case]:
    for path in sorted(folder.rglob("*.json")):
        kind = _kind(path)
        if kind:
            name = path.relative_to(folder).as_posix()
            for entry in KINDS[kind].entries(read_spec(path)) if kind in KINDS else [""]:
                yield Case(path, name, kind, entry)
    for path in sorted(folder.rglob("*.npz")):
        if not path.with_suffix(".json").exists():
            with np.load(path, allow_pickle=False) as arrays:
                for entry in extras.array_entries(arrays.files):
                    yield Case(path, path.relative_to(folder).as_posix(), "extras", entry)


def _kind(path: Path) -> str | None:
    """What the JSON says it is; None for a file that belongs to another case (COCO files, resolved configurations).

    A case that does not say its kind, but has arrays beside it, is of the kind that its folder is named after.
    """
    try:
        spec = read_spec(path)
    except json.JSONDecodeError:
        return "a JSON that cannot be read"
    if isinstance(spec, dict) and "kind" in spec:
        return spec["kind"]
    if path.with_suffix(".npz").exists():
        return path.parent.name
    return "config" if path.name.endswith(".state_dict.json") else None


CASES = list(collect(FOLDER))


@pytest.fixture(scope="module", autouse=True)
def _print_deviations() -> Iterator[None]:
    yield
    for (kind, what), share in sorted(LARGEST.items()):
        print(f"\n{kind:16} {what:36} {share:.3g} of the tolerance", end="")


@pytest.mark.golden
def test_the_folder_holds_cases():
    assert CASES, f"no case in {FOLDER}"


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}:{case.entry}" if case.entry else case.name)
def test_parity(case: Case):
    assert case.kind in KINDS, f"{case.name}: unknown kind {case.kind!r}; known: {', '.join(KINDS)}"
    KINDS[case.kind].run(case)
