"""Typed, frozen configuration and the one function that builds it from plain dictionaries.

No YAML here: `pipeline.experiment_files` reads files; `build` checks types, ranges and unknown keys of what they hold.
A field's metadata says the rest: `low`, `high` bound a number, `identity=False` keeps a field out of the hash
(paths, addresses, names and other things that do not change results), `later=True` keeps its default out of it.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import sys
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from tood.errors import ConfigError


def bounded(
    default: float | None, low: float = -math.inf, high: float = math.inf, *, identity: bool = True, later: bool = False
) -> Any:
    """A number field restricted to [low, high]."""
    return field(default=default, metadata={"low": low, "high": high, "identity": identity, "later": later})


def unhashed(default: Any) -> Any:
    """A field that does not change results (a path, an address, a count of loader processes)."""
    return field(default=default, metadata={"identity": False})


def later(default: Any) -> Any:
    """A field that came after hashes had been given out: its default is what configurations without it meant, and leaves
    their hashes as they are; so checkpoints, runs and registered models from before keep their configuration's name.
    """
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class SplitConfig:
    annotations: str = unhashed("")  # COCO JSON, relative to data.root unless absolute
    images: str = unhashed("")  # folder that the JSON's file_name is relative to


@dataclass(frozen=True)
class AugmentConfig:
    """Training images that are made of several (`tood.data.mixing`). All off by default."""

    mosaic: float = bounded(0.0, 0, 1)  # share of images that become a mosaic of four
    mixup: float = bounded(0.0, 0, 1)  # share that is mixed half and half with another image, mosaics too
    last_epochs_off: int = bounded(0, 0, 10_000)  # final epochs without either: they learn from images as they are


@dataclass(frozen=True)
class DataConfig:
    source: Literal["coco", "digits"] = "coco"  # digits: the offline demo set, made on first use in data.root
    root: str = unhashed("data/coco")
    train: SplitConfig = SplitConfig("annotations/instances_train2017.json", "train2017")
    val: SplitConfig = SplitConfig("annotations/instances_val2017.json", "val2017")
    long_side: int = bounded(1333, 32, 8192)  # keep-ratio resize: neither side exceeds its bound
    short_side: int = bounded(800, 32, 8192)
    short_side_min: int = bounded(0, 0, 8192)  # > 0: multi-scale, uniform in [short_side_min, short_side] a training image
    flip: float = bounded(0.5, 0, 1)
    augment: AugmentConfig = later(AugmentConfig())
    keep_empty: bool = False  # train on images without objects too
    invalid_boxes: Literal["error", "drop"] = "error"
    workers: int = bounded(2, 0, 256, identity=False)  # loader processes a training worker
    cache: str = unhashed("")  # folder for decoded training images, so that later epochs need not decode them; "": none
    cache_gb: float = bounded(32.0, 0, 1e6, identity=False)  # of 1e9 bytes; images beyond it are decoded each time
    buckets: int = bounded(0, 0, 3, later=True)  # n: training batches are padded to one of n sizes an orientation
    resize: Literal["cpu", "device"] = later("cpu")  # device: training images travel as decoded, and are resized where they arrive
    decode: Literal["cpu", "device"] = later("cpu")  # device: training JPEGs travel as files, for a GPU's decoder

    def check(self) -> None:
        if self.decode == "device" and self.resize != "device":
            raise ConfigError("decode: 'device' leaves nothing to resize in the loader; set resize=device, or decode=cpu")
        if self.decode == "device" and self.cache:
            raise ConfigError("decode: 'device' leaves nothing to cache in the loader; set cache='', or decode=cpu")
        if self.resize == "device" and (self.augment.mosaic or self.augment.mixup):
            raise ConfigError(
                "resize: 'device' leaves nothing to mix in the loader; set resize=cpu, or augment.mosaic=0 and augment.mixup=0"
            )


# (depth, groups, width_per_group) -> torchvision's name of the network
NETWORKS = {
    (18, 1, 64): "resnet18",
    (34, 1, 64): "resnet34",
    (50, 1, 64): "resnet50",
    (101, 1, 64): "resnet101",
    (50, 32, 4): "resnext50_32x4d",
    (101, 32, 8): "resnext101_32x8d",
    (101, 64, 4): "resnext101_64x4d",
}


@dataclass(frozen=True)
class BackboneConfig:
    depth: Literal[18, 34, 50, 101] = 50
    frozen_stages: int = bounded(1, 0, 4)  # 0: all trained; k: the stem and the first k stages are frozen
    norm_eval: bool = True  # BatchNorm uses its running statistics in training
    groups: Literal[1, 32, 64] = 1  # of the 3x3 convolutions; more than 1: ResNeXt
    width_per_group: Literal[64, 4, 8] = 64  # channels of a group in the first stage, 64 = an ordinary ResNet
    style: Literal["pytorch", "caffe"] = "pytorch"  # which convolution halves a stage's map: the 3x3, or the 1x1 before it
    dcn: Literal["none", "c3-c5", "c4-c5"] = "none"  # stages whose 3x3 convolutions are deformable, with masks (DCNv2)
    train_norm: bool = True  # False: BatchNorm's weights and biases stay as loaded, as with weights that came from Caffe
    pixels: Literal["rgb", "bgr", "bgr_detectron"] = "rgb"  # what the first convolution reads: tood.data.batches.PIXELS

    @property
    def network(self) -> str:
        return NETWORKS[self.depth, self.groups, self.width_per_group]

    def check(self) -> None:
        if (self.depth, self.groups, self.width_per_group) not in NETWORKS:
            known = ", ".join(f"depth={d} groups={g} width_per_group={w}" for d, g, w in NETWORKS if d == self.depth)
            raise ConfigError(
                f"groups: depth={self.depth} groups={self.groups} width_per_group={self.width_per_group} is no network here; "
                f"set {known}"
            )
        for key, default in (("style", "pytorch"), ("dcn", "none")):
            if self.depth < 50 and getattr(self, key) != default:
                raise ConfigError(
                    f"{key}: {getattr(self, key)!r} needs blocks of three convolutions, which depth={self.depth} has not; "
                    f"set {key}={default} or depth=50"
                )


@dataclass(frozen=True)
class NeckConfig:
    channels: int = bounded(256, 8, 1024)
    kind: Literal["fpn", "pafpn"] = "fpn"  # pafpn: a second path, from fine to coarse, after the one from coarse to fine
    extra_from: Literal["output", "input"] = "output"  # what P6 is made from: P5, or C5 as in RetinaNet
    relu_before_extra: bool = False  # a ReLU between P6 and P7, as in FCOS


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """End a run whose metric (val/AP, in a sweep sweep.metric) no longer rises."""

    patience: int = bounded(5, 1, 10_000)  # epochs without a better figure after which the run ends
    min_delta: float = bounded(0.0, 0, 1)  # better: by more than this


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = bounded(12, 1, 10_000)
    seed: int = bounded(0, 0, 2**31 - 1)
    batch_size: int = bounded(16, 1, 65_536)  # images a step, over all workers
    lr: float = bounded(0.01, 0, 100)  # for lr_batch_size images a step
    lr_batch_size: int = bounded(16, 1, 65_536)
    scale_lr: bool = True  # lr * batch_size / lr_batch_size
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = bounded(0.9, 0, 1)  # of sgd
    weight_decay: float = bounded(1e-4, 0, 1)
    bias_lr: float = bounded(1.0, 0, 100)  # times lr, for the biases of convolutions (FCOS and VFNet: 2)
    bias_decay: float = bounded(1.0, 0, 100)  # times weight_decay, for the same (FCOS and VFNet: 0)
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[int, ...] = (8, 11)  # epochs after which lr is multiplied by gamma
    gamma: float = bounded(0.1, 0, 1)
    warmup_steps: int = bounded(500, 0, 1_000_000)
    warmup_factor: float = bounded(0.001, 0, 1)
    warmup: Literal["linear", "constant"] = "linear"  # constant: lr * warmup_factor in all of warmup_steps
    clip_norm: float = bounded(0.0, 0, 1e6)  # 0: gradients are not clipped
    accumulate: int = bounded(1, 1, 1024)  # forward passes a step; batch_size is still the images a step
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    fold_norms: bool = later(False)  # constant BatchNorm goes into the convolutions in fp32 too, as in bf16 and in evaluation
    deterministic: bool = later(True)  # the same bits each time; False: a GPU's quickest kernels, whose bits differ from run to run
    compile: bool = later(False)  # torch.compile of backbone, neck and head in training, once for each of data.buckets
    checkpointing: bool = unhashed(False)  # keep less for the backward pass and compute it again: slower, smaller, the same bits
    ema: float = bounded(0.0, 0, 0.999999)  # decay of the averaged weights; 0: off. Where on, they are evaluated
    evaluate_every: int = bounded(1, 1, 10_000)  # epochs between evaluations; the last epoch is always evaluated
    early_stopping: EarlyStoppingConfig | None = later(None)
    log_every: int = bounded(20, 1, 100_000, identity=False)  # steps between progress lines
    checkpoint_minutes: float = bounded(10.0, 0, 1e6, identity=False)  # between checkpoints within an epoch; 0: after epochs alone


@dataclass(frozen=True)
class TTAConfig:
    """Test-time augmentation: an image is looked at in several ways, one NMS over all that is found. Off by default."""

    flip: bool = False  # each view mirrored too
    scales: tuple[float, ...] = (1.0,)  # views: times data.long_side and data.short_side

    @property
    def on(self) -> bool:
        return self != TTAConfig()

    def check(self) -> None:
        if not self.scales or len(set(self.scales)) < len(self.scales) or not all(0.1 <= scale <= 4 for scale in self.scales):
            raise ConfigError(
                f"scales: {list(self.scales)} are not different numbers from 0.1 to 4; give some such as [0.75, 1, 1.25]"
            )


@dataclass(frozen=True)
class PredictConfig:
    score_threshold: float = bounded(0.05, 0, 1)
    nms: bool = True  # False: no suppression, for detectors with a one-to-one predictor
    nms_iou: float = bounded(0.6, 0, 1)
    per_level: int = bounded(1000, 1, 1_000_000)  # (point, class) pairs kept a level before NMS
    max_detections: int = bounded(100, 1, 100_000)
    min_size: float = bounded(0.0, 0, 10_000)  # original pixels; boxes with a side <= this are dropped
    clip: bool = False  # clip boxes to the image before NMS (mmdetection does for all but TOOD, whose original code does too)
    score_voting: bool = False  # boxes become means of those that NMS suppressed, by score and IoU (PAA)
    tta: TTAConfig = later(TTAConfig())

    def check(self) -> None:
        if self.tta.on and not self.nms:
            raise ConfigError("tta: its views are merged by NMS; set nms=true, or tta.flip=false tta.scales=[1]")


def build(cls: type, values: Any, where: str = "") -> Any:
    """Build the dataclass `cls` from a mapping of plain values.

    Raises ConfigError for unknown keys (naming the nearest valid one), wrong types and values out of range. A class may
    offer `prepare(values) -> values` to expand shorthands, and `check(self) -> None` for rules between fields.
    """
    if dataclasses.is_dataclass(values) and isinstance(values, cls):
        return values
    if not isinstance(values, dict):
        raise ConfigError(f"{where or cls.__name__}: expected a mapping of keys, got {_shown(values)}")
    if hasattr(cls, "prepare"):
        values = cls.prepare(values)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ConfigError(f"{_join(where, key)}: unknown key{_nearest(key, fields)}")
    known = {}
    for name, value in values.items():
        known[name] = _convert(hints[name], value, _join(where, name), fields[name].metadata)
    try:
        built = cls(**known)
    except TypeError as error:
        raise ConfigError(f"{where or cls.__name__}: {error}") from None
    if hasattr(built, "check"):
        try:
            built.check()
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}" if where else str(error)) from None
    return built


def to_dict(config: Any) -> Any:
    """Plain JSON-ready values of a configuration, every key written out."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(v) for v in config]
    if isinstance(config, dict):
        return {k: to_dict(v) for k, v in config.items()}
    return config


def identity(config: Any) -> Any:
    """The part of a configuration that changes results: `to_dict` without the fields marked `identity=False`, and without
    those marked `later=True` where they have their default.
    """
    if dataclasses.is_dataclass(config):
        fields = [f for f in dataclasses.fields(config) if f.metadata.get("identity", True)]
        said = [f for f in fields if not f.metadata.get("later") or getattr(config, f.name) != f.default]
        return {f.name: identity(getattr(config, f.name)) for f in said}
    return to_dict(config)


def config_hash(config: Any) -> str:
    """Twelve hex digits that two configurations share exactly when they mean the same results."""
    return hash_of(identity(config))


def hash_of(values: Any) -> str:
    """The same of plain values, such as the `identity` that a checkpoint keeps."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _convert(kind: Any, value: Any, where: str, limits: Any) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where, limits)
    if origin is Literal:
        if value not in args or isinstance(value, bool) != any(isinstance(a, bool) for a in args):
            raise ConfigError(f"{where}: {_shown(value)} is not one of {', '.join(map(str, args))}{_nearest(value, args)}")
        return args[args.index(value)]  # 50.0 becomes 50
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {_shown(value)}")
        return tuple(_convert(args[0], v, f"{where}[{i}]", limits) for i, v in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    if kind is Any or origin is dict or kind is dict:
        if kind is not Any and not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {_shown(value)}")
        return value
    low, high = limits.get("low", -math.inf), limits.get("high", math.inf)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= sys.float_info.max else math.inf if value > 0 else -math.inf
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}: expected {kind.__name__}, got {_shown(value)}")
    if kind in (int, float) and not low <= value <= high:  # NaN fails too
        raise ConfigError(f"{where}: {_shown(value)} is not between {low} and {high}")
    if kind is float and math.isinf(value):
        raise ConfigError(f"{where}: {value} is not a finite number; give one")
    if kind is str and "\0" in value:
        raise ConfigError(f"{where}: {_shown(value)} holds a NUL character, which no name or path has; remove it")
    return value


def _convert_union(options: tuple, value: Any, where: str, limits: Any) -> Any:
    """`X | None`, or a choice of dataclasses told apart by the default of their field `name`."""
    if value is None and type(None) in options:
        return None
    named = {o.name: o for o in options if dataclasses.is_dataclass(o) and hasattr(o, "name")}
    if not named:
        return _convert(next(o for o in options if o is not type(None)), value, where, limits)
    if isinstance(value, tuple(named.values())):
        return value
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping with a name of {', '.join(named)}, got {_shown(value)}")
    name = value.get("name", next(iter(named)))
    if not isinstance(name, str) or name not in named:
        raise ConfigError(f"{_join(where, 'name')}: {_shown(name)} is not one of {', '.join(named)}{_nearest(name, named)}")
    return build(named[name], value, where)


def _join(where: str, key: Any) -> str:
    key = str(key) if str(key).isprintable() and len(str(key)) <= 80 else _shown(key)
    return f"{where}.{key}" if where else key


def _shown(value: Any) -> str:
    """A value in a message: what a person wrote may be of any length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest(word: Any, valid: Any) -> str:
    close = difflib.get_close_matches(str(word), [str(v) for v in valid], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(map(str, valid))}"
