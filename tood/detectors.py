"""THE table: a dense detector is a row of choices, and any row may be changed choice by choice.

tower       parallel | t_head | et_head               what features classes and boxes come from
context     none | sce | dpe | both                   what each task's tower looks at (TSCODE)
aligner     none | cls | box | both                   which task the T-head aligns with the other
prior       point | anchor | nine_anchors             what a location stands for
box         distance.. | delta.. | distribution       how a box is written relative to the prior (tood.box_forms)
quality     none | centerness | iou                   what a branch of its own says beside the class
refinement  none | star                               whether boxes are predicted twice (VFNet)
one_to_one  false | true                              a second predictor for detection without NMS (YOLOv10)
objective   task_aligned | atss | fcos | ...          who learns what: assigner, losses, phases
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from tood.alignment import ALIGNERS
from tood.backbone import Backbone
from tood.box_forms import BOX_FORMS, BoxForm, distribution
from tood.config import BackboneConfig, NeckConfig, PredictConfig, bounded, unhashed
from tood.context import DOWNSAMPLING, DetailContext, SemanticContext
from tood.detector import Detector
from tood.errors import ConfigError
from tood.head import DenseHead, Predictor
from tood.neck import FeaturePyramid
from tood.objectives.atss import ATSS
from tood.objectives.ddod import DDOD
from tood.objectives.fcos import FCOS
from tood.objectives.foveabox import FoveaBox
from tood.objectives.gfl import GFL
from tood.objectives.paa import PAA
from tood.objectives.retinanet import RetinaNet
from tood.objectives.soft_label import SoftLabel
from tood.objectives.task_aligned import TaskAligned
from tood.objectives.vfnet import VFNet
from tood.predictions import QUALITIES
from tood.priors import PRIORS, PriorGrid
from tood.refinement import StarRefinement
from tood.towers import DEFORMABLE, TOWERS, ConvStyle, build_tower

_TOOD = {"tower": "t_head", "aligner": "both", "prior": "point", "box": "distance", "objective": {"name": "task_aligned"}}
_ANCHOR = {"prior": "anchor", "box": "delta"}
_PARALLEL = {"tower": "parallel", "aligner": "none", "layers": 4}
_T_HEAD = {"tower": "t_head", "aligner": "both", "layers": 6, "quality": "none", "conv_bias": False}
_ATSS = _PARALLEL | {"prior": "point", "box": "distance", "quality": "centerness", "objective": {"name": "atss"}}
_P6_FROM_C5 = {"neck": {"extra_from": "input"}}
_CAFFE_NECK = {"neck": {"relu_before_extra": True}}
_FCOS = _ATSS | _CAFFE_NECK | {
    "centre_offset": 0.5,
    "box": "distance_px",
    "quality_from": "classes",
    "objective": {"name": "fcos", "radius": 0.0, "box_loss": "iou"},
}  # fmt: skip
_FCOS_IMPRV = _FCOS | {"box": "distance_relu", "quality_from": "boxes", "conv_bias": True, "objective": {"name": "fcos"}}
_FOVEABOX = _PARALLEL | _P6_FROM_C5 | {
    "prior": "point",
    "centre_offset": 0.5,
    "box": "distance_base",
    "objective": {"name": "foveabox"},
}  # fmt: skip
_GFL = _PARALLEL | {"prior": "point", "box": "distribution", "objective": {"name": "gfl"}}
_TSCODE = {"context": "both"}

DETECTORS: dict[str, dict[str, Any]] = {
    "tood": _TOOD,
    "tood_anchor_based": _TOOD | _ANCHOR,
    "t_head_atss": _TOOD | {"objective": {"name": "atss", "count_empty": False}},  # the T-head alone, TOOD Tables 1 and 6
    "parallel_tal": _TOOD | _PARALLEL,  # task alignment learning alone, TOOD Table 6
    "atss": _ATSS,
    "atss_anchor_based": _ATSS | _ANCHOR,
    "fcos": _FCOS,
    "fcos_imprv": _FCOS_IMPRV,  # centre sampling, normalised boxes, centerness beside the boxes, GIoU
    "t_head_fcos": _FCOS_IMPRV | _T_HEAD,  # TOOD Table 1
    "foveabox": _FOVEABOX,
    "t_head_foveabox": _FOVEABOX | _T_HEAD,  # TOOD Table 1
    "retinanet": _PARALLEL | _P6_FROM_C5 | {
        "groups": 0,
        "prior": "nine_anchors",
        "box": "delta_unit",
        "objective": {"name": "retinanet"},
    },
    "paa": _PARALLEL | _ANCHOR | {"quality": "iou", "objective": {"name": "paa"}},
    "gfl": _GFL,
    "vfnet": _PARALLEL | _CAFFE_NECK | {
        "layers": 3,
        "prior": "point",
        "box": "distance_reach",
        "refinement": "star",
        "objective": {"name": "vfnet"},
    },
    "ddod": _PARALLEL | _ANCHOR | {"deformable": "first", "quality": "iou", "objective": {"name": "ddod"}},
    "tscode_fcos": _FCOS_IMPRV | _TSCODE,
    "tscode_atss": _ATSS | _ANCHOR | _TSCODE,
    "tscode_gfl": _GFL | _TSCODE,
    "tscode_tood": _TOOD | {"context": "dpe"},
    # later ideas in the same choices
    "et_head_tal": _PARALLEL | {"tower": "et_head", "prior": "point", "box": "distribution", "objective": {"name": "task_aligned"}},
    "tood_one_to_one": _TOOD | {"one_to_one": True},
    "rtmdet_assigner": _TOOD | {"objective": {"name": "soft_label"}},
}  # fmt: skip

Objective = TaskAligned | ATSS | FCOS | FoveaBox | RetinaNet | PAA | GFL | VFNet | DDOD | SoftLabel


@dataclass(frozen=True)
class ModelConfig:
    detector: Literal[tuple(DETECTORS)] = unhashed("tood")  # only fills in the choices below
    tower: Literal[TOWERS] = "t_head"
    layers: int = bounded(6, 1, 32)  # convolutions of a tower
    channels: int = bounded(256, 8, 4096)
    groups: int = bounded(32, 0, 1024)  # of the head's GroupNorm; 0: no norm
    conv_bias: bool = False  # of the tower's convolutions beside their norm
    deformable: Literal[tuple(DEFORMABLE)] = "none"  # which of the tower's convolutions are
    context: Literal["none", "sce", "dpe", "both"] = "none"
    sce_down: Literal[DOWNSAMPLING] = "conv"  # how SCE halves a level
    sce_kernel: Literal[3, 5, 7] = 3
    sce_upper: bool = True  # does SCE look at the level above
    dpe_lower: bool = True  # does DPE look at the level below
    dpe_upper: int = bounded(1, 0, 2)  # levels above that DPE looks at
    aligner: Literal[ALIGNERS] = "both"
    prior: Literal[tuple(PRIORS)] = "point"
    centre_offset: Literal[0.0, 0.5] = 0.0  # of a cell's priors, in strides: its corner or its middle
    box: Literal[tuple(BOX_FORMS)] = "distance"
    bins: int = bounded(16, 2, 1024)  # of box=distribution: n
    bin_width: float = bounded(1.0, 0.01, 64)  # in strides: Delta
    quality: Literal[QUALITIES] = "none"
    quality_from: Literal["boxes", "classes"] = "boxes"  # the features that the quality branch reads
    refinement: Literal["none", "star"] = "none"
    one_to_one: bool = False  # a second predictor that gives an object one box, for predict.nms=false (YOLOv10)
    objective: Objective = TaskAligned()
    backbone: BackboneConfig = BackboneConfig()
    neck: NeckConfig = NeckConfig()

    @staticmethod
    def prepare(values: dict[str, Any]) -> dict[str, Any]:
        """Fill in the row that `detector` names under the keys that are given."""
        row = DETECTORS.get(str(values.get("detector", "tood")), {})  # the field's own check refuses an unknown name
        merged = {**row, **values}
        objective = values.get("objective")
        if isinstance(objective, dict) and objective.get("name", row.get("objective", {}).get("name")) == row.get(
            "objective", {}
        ).get("name"):
            merged["objective"] = {**row.get("objective", {}), **objective}
        if isinstance(values.get("neck"), dict):
            merged["neck"] = {**row.get("neck", {}), **values["neck"]}
        if merged.get("tower", "t_head") != "t_head" and "aligner" not in values:
            merged["aligner"] = "none"
        return merged

    def check(self) -> None:
        for reason in _contradictions(self):
            raise ConfigError(reason)


def _contradictions(c: ModelConfig):
    """Why a combination makes no sense, key first and what to do last."""
    form, objective = BOX_FORMS[c.box], c.objective
    if c.tower != "t_head" and c.aligner != "none":
        yield f"aligner: {c.aligner!r} needs the interactive features of tower=t_head; {c.tower} has none: set aligner=none"
    if c.prior == "point" and form.of_anchor:
        yield f"box: {c.box!r} is relative to an anchor's size; set prior=anchor or box=distance"
    if c.prior != "point" and not form.of_anchor:
        yield f"prior: {c.prior!r} has no effect on box={c.box}; set box=delta or prior=point"
    if c.prior == "nine_anchors" and (c.aligner != "none" or c.refinement != "none"):
        yield "prior: 'nine_anchors' leaves no single box a location to align or refine; set prior=anchor"
    if c.groups and c.channels % c.groups:
        yield f"channels: {c.channels} is not a multiple of groups={c.groups}; set either so that it is"
    if c.tower == "et_head" and c.deformable != "none":
        yield f"deformable: {c.deformable!r} has no effect on tower=et_head, which has no stack of convolutions; set none"
    if c.tower == "et_head" and c.groups and c.neck.channels % c.groups:
        yield f"groups: the neck's {c.neck.channels} channels are not a multiple of {c.groups}; set either so that they are"
    if c.context in ("sce", "both") and c.tower != "parallel":
        yield f"context: {c.context!r} gives classes a coarser map, which tower={c.tower} cannot share; set tower=parallel or dpe"
    if c.context in ("sce", "both") and c.refinement != "none":
        yield "refinement: 'star' looks at class features on the boxes' grid, which context=sce coarsens; set one to none"
    if c.context in ("sce", "both") and c.quality != "none" and c.quality_from == "classes":
        yield "quality_from: the class features are coarser with context=sce; set quality_from=boxes"
    if c.refinement != "none" and c.box == "distribution":
        yield "refinement: 'star' multiplies distances, which box=distribution has none of; set box=distance_reach"
    if c.refinement != "none" and form.of_anchor:
        yield "refinement: 'star' multiplies distances; set prior=point and box=distance_reach"
    if c.refinement != "none" and objective.name != "vfnet":
        yield f"refinement: objective={objective.name} does not train the coarse boxes; set objective.name=vfnet or refinement=none"
    if objective.name == "retinanet" and c.aligner in ("box", "both"):
        yield f"aligner: objective=retinanet regresses deltas, which aligner={c.aligner} moves on; set aligner=none or cls"
    needed = getattr(objective, "BOX_FORM", c.box)
    if c.box != needed:
        yield f"box: objective={objective.name} regresses the numbers of box={needed}, not of {c.box}"
    needed = getattr(objective, "QUALITY", c.quality)
    if c.quality != needed:
        yield f"quality: objective={objective.name} trains a branch of quality={needed}; set it"
    if c.quality != "none" and objective.FUSION == "none":
        yield f"quality: objective={objective.name} has no use for a {c.quality} branch; set quality=none"
    if c.one_to_one and objective.name != "task_aligned":
        yield f"one_to_one: objective={objective.name} has no one-to-one matching; set objective.name=task_aligned or false"
    if c.box == "distribution" and objective.name in ("paa", "vfnet", "ddod"):
        yield f"box: objective={objective.name} does not train distributions; set box=delta or distance"
    if c.context in ("dpe", "both") and not c.dpe_lower and not c.dpe_upper:
        without = "none" if c.context == "dpe" else "sce"
        yield f"context: {c.context!r} looks at no other level with dpe_lower=false dpe_upper=0; set one, or context={without}"


def idle_choices(c: ModelConfig) -> Iterator[str]:
    """Of choices about a part that is not there, which would change nothing but the configuration's hash, what to do.

    Not refused by `check`: what was trained with one is as good as any other.
    """
    switches = [
        (c.box != "distribution", f"box={c.box}", ("bins", "bin_width")),
        (c.context not in ("sce", "both"), f"context={c.context}", ("sce_down", "sce_kernel", "sce_upper")),
        (c.context not in ("dpe", "both"), f"context={c.context}", ("dpe_lower", "dpe_upper")),
        (c.quality == "none", "quality=none", ("quality_from",)),
        (not c.groups, "groups=0, whose convolutions always have a bias", ("conv_bias",)),
    ]
    row, plain = DETECTORS[c.detector], {field.name: field.default for field in fields(c)}
    for off, switch, keys in switches:
        for key in keys if off else ():
            chosen = getattr(c, key)
            if chosen not in (plain[key], row.get(key)):  # what a row brings may outlive the part that it is about
                yield f"{key}: {chosen!r} has no effect on {switch}; leave {key} out"


def build_detector(config: ModelConfig, num_classes: int, predict: PredictConfig | None = None) -> Detector:
    """A freshly initialised detector."""
    backbone = Backbone(config.backbone)
    width = config.neck.channels
    neck = FeaturePyramid(backbone.channels, width, config.neck.kind, config.neck.extra_from, config.neck.relu_before_extra)
    semantic = detail = None
    if config.context in ("sce", "both"):
        semantic = SemanticContext(width, config.sce_down, config.sce_kernel, config.sce_upper)
    if config.context in ("dpe", "both"):
        detail = DetailContext(width, backbone.channels[0], config.dpe_lower, config.dpe_upper)
    style = ConvStyle(config.groups, config.conv_bias, config.deformable)
    wide = semantic is not None and config.sce_upper
    tower = build_tower(config.tower, width, config.channels, config.layers, style, wide)
    shapes = PRIORS[config.prior]

    def predictor() -> Predictor:
        return Predictor(
            tower,
            num_classes=num_classes,
            box=_box_form(config),
            priors=len(shapes),
            aligner=config.aligner,
            quality=config.quality,
            quality_from=config.quality_from,
            refinement=StarRefinement(tower.box_channels, style) if config.refinement == "star" else None,
            cells=1 if semantic is None else 2,
        )

    grid = PriorGrid(shapes, config.centre_offset)
    head = DenseHead(
        tower,
        predictor(),
        grid=grid,
        semantic=semantic,
        detail=detail,
        one_to_one=predictor() if config.one_to_one else None,
        bin_width=config.bin_width,
    )
    return Detector(backbone, neck, head, config.objective, predict or PredictConfig())


def _box_form(config: ModelConfig) -> BoxForm:
    return distribution(config.bins, config.bin_width) if config.box == "distribution" else BOX_FORMS[config.box]
