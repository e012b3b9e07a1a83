"""A checkpoint of mmdetection as a model of ours, and back: which recipe it is of, and whether every parameter fits.

K classes.
"""

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tood.config import build
from tood.data.coco_classes import COCO_CLASSES
from tood.detectors import ModelConfig, build_detector
from tood.errors import CheckpointError, ConfigError
from tood.mmdet.configs import from_mmdet, model_config_from_mmdet, predict_config_from_mmdet, to_mmdet
from tood.mmdet.files import Foreign
from tood.mmdet.heads import head_type
from tood.mmdet.inference import CLASS_PREDICTORS, infer
from tood.mmdet.text import image_sides, model_of, read_config_text
from tood.priors import PRIORS

SHOWN = 12  # names of each kind that an error lists


class Described(NamedTuple):
    """Values of a recipe: `model`, `predict`, `data`; and how they were found."""

    values: dict[str, Any]
    source: str
    assumed: tuple[str, ...] = ()  # settings that nothing in the file says


def describe(foreign: Foreign, detector: str | None = None) -> Described:
    """What the file says of its detector: in a recipe of ours, in mmdetection's configuration, or by names and shapes.

    `detector`: a row of our table, where names and shapes leave a choice. Raises ConfigError, CheckpointError.
    """
    model = foreign.recipe.get("model") if foreign.recipe else None
    if isinstance(model, dict) and detector in (None, model.get("detector")):
        values = {key: foreign.recipe[key] for key in ("model", "predict", "data") if key in foreign.recipe}
        return Described(values, "the recipe in the file")
    if foreign.config_text is None or detector is not None:
        found = infer(foreign.state, detector)
        predict = found.predict | ({"clip": True} if foreign.first_code else {})
        return Described({"model": found.model, "predict": predict}, "names and shapes", found.assumed)
    assigned = read_config_text(foreign.config_text)
    model = model_of(assigned)
    try:
        values = {"model": model_config_from_mmdet(model), "data": image_sides(assigned)}
        predict = predict_config_from_mmdet(model["test_cfg"], model["bbox_head"]) if model["test_cfg"] else {}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the configuration in the file is not mmdetection's ({error!r}); give --config") from None
    except ConfigError as error:
        raise ConfigError(f"the configuration in the file: {error}; --config EXPERIMENT takes a recipe of ours instead") from None
    return Described(values | {"predict": predict | ({"clip": True} if foreign.first_code else {})}, "mmdetection's configuration")


def class_names(state: dict[str, Tensor], config: ModelConfig, given: tuple[str, ...]) -> tuple[str, ...]:
    """The names given, which have to be as many as the weights have; else COCO's for 80 classes, numbers for others."""
    key = next((k for name in CLASS_PREDICTORS if (k := f"bbox_head.{name}.weight") in state), None)
    if key is None or state[key].ndim != 4:
        raise CheckpointError("no predictor of classes in the weights: they are of no detector that is known here")
    count, rest = divmod(len(state[key]), len(PRIORS[config.prior]))
    if rest or not count:
        raise CheckpointError(f"{key} has {len(state[key])} rows, not so many for each of {len(PRIORS[config.prior])} anchors")
    if given and len(given) != count:
        raise CheckpointError(f"{len(given)} class names were given, but {key} tells {count} classes apart; name all of them")
    if given and len(set(given)) != len(given):
        raise CheckpointError("the class names are not all different; give others with --classes")
    return given or (COCO_CLASSES if count == len(COCO_CLASSES) else tuple(f"class_{i}" for i in range(count)))


def our_weights(state: dict[str, Tensor], config: ModelConfig, num_classes: int) -> dict[str, Tensor]:
    """Weights of our detector from mmdetection's, every one of them.

    Raises CheckpointError that lists, by mmdetection's names, what the detector does not have, what it misses and what has
    another shape.
    """
    head = head_type(config)
    with torch.device("meta"):
        ours = build_detector(config, num_classes).state_dict()
    expected = to_mmdet(ours, head)
    made = {k for k in expected if k.endswith((".num_batches_tracked", ".integral.project"))}  # not learnt: they may be absent
    shapes = [
        f"{key} {list(tensor.shape)} instead of {list(expected[key].shape)}"
        for key, tensor in state.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    problems = {
        "unknown": sorted(state.keys() - expected.keys()),
        "missing": sorted(expected.keys() - state.keys() - made),
        "of another shape": shapes,
        "not finite": sorted(k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()),
    }
    if any(problems.values()):
        said = "; ".join(f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in problems.items() if keys)
        raise CheckpointError(f"the weights are not those of a {config.objective.name} detector with these settings: {said}")
    named = from_mmdet(state)
    weights = {key: named.get(key) for key in ours}
    return {
        key: torch.zeros(ours[key].shape, dtype=ours[key].dtype) if tensor is None else tensor.to(ours[key].dtype)
        for key, tensor in weights.items()
    }


def mmdet_weights(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our weights by mmdetection's names. Raises ConfigError where its head would not mean the same by them."""
    return to_mmdet(weights, mmdet_head(config))


def mmdet_head(config: ModelConfig) -> str:
    """mmdetection's head that gives the same predictions. Raises ConfigError where there is none."""
    rows = _ROWS_OF_OBJECTIVE.get(config.objective.name)
    if rows is None:
        raise ConfigError(f"objective={config.objective.name}: mmdetection has no such detector; export in another format")
    own, differing = asdict(config), []
    for row in rows:
        theirs = asdict(build(ModelConfig, {"detector": row}))
        fixed = _FIXED if row not in ("fcos", "fcos_imprv") else _FIXED - {"quality_from", "conv_bias"}  # options of its head
        differing.append({key: theirs[key] for key in fixed if own[key] != theirs[key]})
    least = min(differing, key=len)
    deformable = {"task_aligned": "first_two", "ddod": "first", "fcos": "last", "vfnet": "last"}.get(config.objective.name)
    if own["deformable"] not in ("none", deformable):
        least = least | {"deformable": f"none or {deformable}" if deformable else "none"}
    if least:
        said = ", ".join(f"{key}={own[key]} (there {value})" for key, value in sorted(least.items()))
        raise ConfigError(f"{said}: mmdetection's {config.objective.name} head has no such choice; export in another format")
    return head_type(config)


# what decides the meaning of a head's numbers; how wide or deep it is, mmdetection's configuration says freely
_FIXED = {
    *("tower", "aligner", "context", "prior", "centre_offset", "box", "bin_width", "quality", "quality_from", "conv_bias"),
    *("refinement", "one_to_one"),
}
_ROWS_OF_OBJECTIVE = {
    "task_aligned": ("tood", "tood_anchor_based"),
    "atss": ("atss_anchor_based",),
    "fcos": ("fcos", "fcos_imprv"),
    "gfl": ("gfl",),
    "retinanet": ("retinanet",),
    "foveabox": ("foveabox",),
    "paa": ("paa",),
    "vfnet": ("vfnet",),
    "ddod": ("ddod",),
}


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
