"""Configuration from plain values: what is refused and how, what is canonical, and what the hash stands for."""

import dataclasses
import math
import typing
from dataclasses import dataclass

import pytest

from tood.config import (
    AugmentConfig,
    BackboneConfig,
    DataConfig,
    EarlyStoppingConfig,
    NeckConfig,
    PredictConfig,
    SplitConfig,
    TrainConfig,
    TTAConfig,
    bounded,
    build,
    config_hash,
    identity,
    to_dict,
)
from tood.detectors import DETECTORS, ModelConfig, Objective
from tood.errors import ConfigError
from tood.objectives.atss import ATSS
from tood.objectives.task_aligned import TaskAligned
from tood.recipe import Recipe

OBJECTIVES = typing.get_args(Objective)
AIDS = (AugmentConfig, EarlyStoppingConfig, TTAConfig)
CLASSES = (SplitConfig, DataConfig, BackboneConfig, NeckConfig, TrainConfig, PredictConfig, *AIDS, *OBJECTIVES, ModelConfig)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TrainConfig, {"epoch": 3}, "epoch: unknown key; did you mean 'epochs'?"),
        (DataConfig, {"train": {"image": "x"}}, "train.image: unknown key; did you mean 'images'?"),
        (TrainConfig, {3: 3}, "3: unknown key; valid: epochs"),
        (TrainConfig, {"epochs": "3"}, "epochs: expected int, got '3'"),
        (TrainConfig, {"epochs": True}, "epochs: expected int, got True"),
        (TrainConfig, {"epochs": 1.5}, "epochs: expected int, got 1.5"),
        (TrainConfig, {"epochs": 0}, "epochs: 0 is not between 1 and 10000"),
        (TrainConfig, {"lr": math.nan}, "lr: nan is not between 0 and 100"),
        (TrainConfig, {"momentum": 1.01}, "momentum: 1.01 is not between 0 and 1"),
        (TrainConfig, {"channels_last": 1}, "channels_last: expected bool, got 1"),
        (TrainConfig, {"scale_lr": None}, "scale_lr: expected bool, got None"),
        (TrainConfig, {"precision": "bf32"}, "precision: 'bf32' is not one of fp32, bf16; did you mean"),
        (TrainConfig, {"schedule": ["step"]}, r"schedule: \['step'\] is not one of step, cosine"),
        (TrainConfig, {"milestones": 8}, "milestones: expected a list, got 8"),
        (TrainConfig, {"milestones": [8, "x"]}, r"milestones\[1\]: expected int, got 'x'"),
        (BackboneConfig, {"depth": True}, "depth: True is not one of 18, 34, 50, 101"),
        (DataConfig, {"train": "train2017"}, "train: expected a mapping of keys, got 'train2017'"),
        (DataConfig, None, "DataConfig: expected a mapping of keys, got None"),
        (DataConfig, {"augment": {"mosaic": 1.5}}, r"augment\.mosaic: 1\.5 is not between 0 and 1"),
        (DataConfig, {"augment": {"mixup": -1}}, r"augment\.mixup: -1\.0 is not between 0 and 1"),
        (DataConfig, {"augment": {"mosiac": 1}}, r"augment\.mosiac: unknown key; did you mean 'mosaic'"),
        (PredictConfig, {"tta": {"scales": []}}, r"tta: scales: \[\] are not different numbers from 0\.1 to 4"),
        (PredictConfig, {"tta": {"scales": [1, 1.0]}}, r"tta: scales: \[1\.0, 1\.0\] are not different"),
        (PredictConfig, {"tta": {"scales": [0.01]}}, "tta: scales: .* from 0.1 to 4"),
        (PredictConfig, {"tta": {"flip": 1}}, r"tta\.flip: expected bool, got 1"),
        (PredictConfig, {"tta": {"flip": True}, "nms": False}, "tta: its views are merged by NMS; set nms=true"),
        (Recipe, {"data": {"augment": {"last_epochs_off": 13}}}, r"data\.augment\.last_epochs_off: 13 of train\.epochs=12"),
        (Recipe, {"data": {"augment": {"mosaic": 1, "last_epochs_off": 12}}}, "12 of train.epochs=12 leave no epoch with mosaic"),
        (ModelConfig, {"detector": "toodd"}, "detector: 'toodd' is not one of .*; did you mean 'tood'?"),
        (ModelConfig, {"detector": ["tood", "atss"]}, r"detector: \['tood', 'atss'\] is not one of tood"),
        (ModelConfig, {"objective": {"name": "tal"}}, "objective.name: 'tal' is not one of task_aligned, atss"),
        (ModelConfig, {"objective": {"name": ["atss"]}}, r"objective.name: \['atss'\] is not one of task_aligned, atss"),
        (ModelConfig, {"objective": {"name": "atss", "alpha": 1}}, "objective.alpha: unknown key"),
        (ModelConfig, {"objective": "atss"}, "objective: expected a mapping with a name of task_aligned, atss"),
        (ModelConfig, {"objective": NeckConfig()}, "objective: expected a mapping with a name of task_aligned, atss"),
    ],
)
def test_a_bad_value_is_one_clear_error(cls, values, message):
    with pytest.raises(ConfigError, match=message):
        build(cls, values)


def test_an_error_names_the_place_that_the_caller_gives():
    with pytest.raises(ConfigError, match=r"^run\.train\.epochs: expected int"):
        build(TrainConfig, {"epochs": "x"}, "run.train")
    with pytest.raises(ConfigError, match=r"^model: aligner: 'both' needs"):
        build(ModelConfig, {"tower": "parallel", "aligner": "both"}, "model")


def test_numbers_become_the_declared_type_so_that_equal_values_hash_equal():
    loose = build(TrainConfig, {"epochs": 12.0, "lr": 1, "clip_norm": 0, "milestones": [8.0, 11]})
    exact = build(TrainConfig, {"epochs": 12, "lr": 1.0, "clip_norm": 0.0, "milestones": (8, 11)})
    assert repr(loose) == repr(exact)
    assert config_hash(loose) == config_hash(exact)
    assert type(build(BackboneConfig, {"depth": 50.0}).depth) is int


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_pass_their_own_checks_and_survive_being_written_out(cls):
    default = build(cls, {})
    again = build(cls, to_dict(default))
    assert repr(again) == repr(default)  # 0 and 0.0 compare equal, but not in a hash
    assert config_hash(again) == config_hash(default)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_hash_changes_with_every_field_that_changes_results_and_with_no_other(cls):
    default, hints = build(cls, {}), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if typing.get_origin(hints[field.name]) is None and not dataclasses.is_dataclass(hints[field.name]):
            value = getattr(default, field.name)
            other = not value if isinstance(value, bool) else value * 2 + (1 if not isinstance(value, str) else "x")
            changed = config_hash(dataclasses.replace(default, **{field.name: other})) != config_hash(default)
            assert changed == field.metadata.get("identity", True), field.name


def test_paths_and_loader_processes_are_no_part_of_the_identity():
    assert identity(DataConfig(root="a", workers=0)) == identity(DataConfig(root="b", workers=8))
    assert identity(DataConfig())["train"] == {}


def test_what_came_later_leaves_the_hashes_of_those_who_do_not_use_it():
    assert config_hash(Recipe()) == "fae47519c13d"  # given out before there was mosaic, TTA or early stopping
    used = [{"data": {"augment": {"mosaic": 0.5}}}, {"data": {"augment": {"mixup": 0.5}}}, {"predict": {"tta": {"flip": True}}},
            {"predict": {"tta": {"scales": [1, 2]}}}, {"train": {"early_stopping": {}}},
            {"train": {"early_stopping": {"min_delta": 0.1}}}, {}]  # fmt: skip
    assert len({config_hash(build(Recipe, values)) for values in used}) == len(used)
    spelled_out = {
        "data": {"augment": {"mosaic": 0, "mixup": 0}},
        "predict": {"tta": {"scales": [1]}},
        "train": {"early_stopping": None},
    }
    assert config_hash(build(Recipe, spelled_out)) == config_hash(Recipe())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_and_its_choices_spelled_out_have_one_hash(name):
    named = build(ModelConfig, {"detector": name})
    choices = {key: value for key, value in to_dict(named).items() if key != "detector"}
    assert config_hash(build(ModelConfig, choices)) == config_hash(named)


def test_a_row_fills_in_what_is_not_given_and_yields_to_what_is():
    model = build(ModelConfig, {"detector": "atss", "layers": 2, "objective": {"topk": 5}})
    assert (model.tower, model.aligner, model.layers, model.objective) == ("parallel", "none", 2, ATSS(topk=5))
    model = build(ModelConfig, {"detector": "parallel_tal", "objective": {"name": "atss", "topk": 7}})
    assert model.objective == ATSS(topk=7)
    assert build(ModelConfig, {"tower": "parallel"}).aligner == "none"
    assert build(ModelConfig, {"tower": "et_head"}).aligner == "none"


def test_sections_of_a_row_are_filled_in_key_by_key():
    model = build(ModelConfig, {"detector": "t_head_atss", "objective": {"topk": 5}})
    assert model.objective == ATSS(topk=5, count_empty=False)  # the row's own count_empty
    model = build(ModelConfig, {"detector": "t_head_atss", "objective": {"name": "atss"}})
    assert model.objective == ATSS(count_empty=False)
    model = build(ModelConfig, {"detector": "retinanet", "neck": {"channels": 64}})
    assert model.neck == NeckConfig(64, extra_from="input")


def test_toods_first_epochs_count_positives_as_tood_does_unless_told_otherwise():
    assert build(ModelConfig, {"objective": {"warmup": {"topk": 5}}}).objective.warmup == ATSS(topk=5, count_empty=False)
    assert build(ModelConfig, {"objective": {"warmup": {"count_empty": True}}}).objective.warmup == ATSS()
    assert TaskAligned().warmup == ATSS(count_empty=False)


def test_a_field_may_be_absent_or_a_nested_choice():
    @dataclass(frozen=True)
    class Space:
        limit: int | None = bounded(None, 1, 5)
        choices: tuple[NeckConfig, ...] = ()

    assert build(Space, {"limit": None}) == Space()
    assert build(Space, {"limit": 3, "choices": [{"channels": 64}]}) == Space(3, (NeckConfig(64),))
    with pytest.raises(ConfigError, match="limit: 6 is not between 1 and 5"):
        build(Space, {"limit": 6})
    with pytest.raises(ConfigError, match=r"choices\[0\]\.channels: 4 is not between"):
        build(Space, {"choices": [{"channels": 4}]})


def test_a_configuration_cannot_be_changed_after_it_is_built():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build(TrainConfig, {}).lr = 1.0
