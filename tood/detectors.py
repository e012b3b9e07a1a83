"""THE table: a dense detector is a row of choices, and any row may be changed choice by choice.

tower      parallel | t_head                     what features classes and boxes come from
aligner    none | cls | box | both               which task the T-head aligns with the other
prior      point | anchor                        what a location stands for
box        distance | delta                      how a box is written relative to the prior
objective  task_aligned | atss                   who learns what: assigner, losses, phases
"""

from dataclasses import dataclass
from typing import Any, Literal

from tood.alignment import ALIGNERS
from tood.backbone import Backbone
from tood.config import BackboneConfig, NeckConfig, PredictConfig, bounded, unhashed
from tood.detector import Detector
from tood.errors import ConfigError
from tood.head import BOX_FORMS, DenseHead
from tood.neck import FeaturePyramid
from tood.objectives.atss import ATSS
from tood.objectives.task_aligned import TaskAligned
from tood.priors import PRIORS
from tood.towers import TOWERS

_TOOD = {"tower": "t_head", "aligner": "both", "prior": "point", "box": "distance", "objective": {"name": "task_aligned"}}
_ANCHOR = {"prior": "anchor", "box": "delta"}
_PARALLEL = {"tower": "parallel", "aligner": "none", "layers": 4}
_ATSS = {"objective": {"name": "atss"}}

DETECTORS: dict[str, dict[str, Any]] = {
    "tood": _TOOD,
    "tood_anchor_based": _TOOD | _ANCHOR,
    "t_head_atss": _TOOD | _ATSS,  # the T-head alone, TOOD Table 6
    "parallel_tal": _TOOD | _PARALLEL,  # task alignment learning alone, TOOD Table 6
    "parallel_atss": _TOOD | _PARALLEL | _ATSS,  # the baseline of TOOD Table 6
}


@dataclass(frozen=True)
class ModelConfig:
    detector: Literal[tuple(DETECTORS)] = unhashed("tood")  # only fills in the choices below
    tower: Literal[tuple(TOWERS)] = "t_head"
    aligner: Literal[ALIGNERS] = "both"
    prior: Literal[PRIORS] = "point"
    box: Literal[BOX_FORMS] = "distance"
    objective: TaskAligned | ATSS = TaskAligned()
    layers: int = bounded(6, 1, 32)  # convolutions of a tower
    channels: int = bounded(256, 8, 4096)
    groups: int = bounded(32, 1, 1024)  # of the head's GroupNorm
    backbone: BackboneConfig = BackboneConfig()
    neck: NeckConfig = NeckConfig()

    @staticmethod
    def prepare(values: dict[str, Any]) -> dict[str, Any]:
        """Fill in the row that `detector` names under the keys that are given."""
        row = DETECTORS.get(str(values.get("detector", "tood")), {})  # the field's own check refuses an unknown name
        merged = {**row, **values}
        objective = values.get("objective")
        if isinstance(objective, dict) and "name" not in objective:
            merged["objective"] = {**row.get("objective", {}), **objective}
        if merged.get("tower") == "parallel" and "aligner" not in values:
            merged["aligner"] = "none"
        return merged

    def check(self) -> None:
        if self.tower == "parallel" and self.aligner != "none":
            raise ConfigError(
                f"aligner: {self.aligner!r} needs the interactive features of tower=t_head; the parallel tower has none: "
                "set aligner=none"
            )
        if (self.prior, self.box) == ("point", "delta"):
            raise ConfigError("box: 'delta' is relative to an anchor's size; set prior=anchor or box=distance")
        if (self.prior, self.box) == ("anchor", "distance"):
            raise ConfigError("prior: 'anchor' has no effect on box=distance; set box=delta or prior=point")
        if self.channels % self.groups:
            raise ConfigError(f"channels: {self.channels} is not a multiple of groups={self.groups}")


def build_detector(config: ModelConfig, num_classes: int, predict: PredictConfig | None = None) -> Detector:
    """A freshly initialised detector."""
    backbone = Backbone(config.backbone)
    neck = FeaturePyramid(backbone.channels, config.neck.channels)
    head = DenseHead(
        in_channels=config.neck.channels,
        channels=config.channels,
        layers=config.layers,
        groups=config.groups,
        num_classes=num_classes,
        tower=config.tower,
        box=config.box,
        aligner=config.aligner,
    )
    return Detector(backbone, neck, head, config.objective, predict or PredictConfig())
