"""What training does with several passes a step, other classes, other precision and several processes."""

import functools
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from tests.tood.tiny_recipe import MODEL, files, recipe, weights
from tood import run_state, training
from tood.config import build, to_dict
from tood.data.coco import read_split
from tood.detector import Detector
from tood.detectors import ModelConfig, build_detector
from tood.errors import CheckpointError, ConfigError
from tood.inference import detect_all
from tood.results import Detections
from tood.training import read_data, train


def test_accumulating_gives_what_one_pass_gives(data, folder):
    """On equal images, since each pass divides its losses by its own objects."""
    twins = shutil.copytree(data, folder / "twins")
    content = json.loads((twins / "train.json").read_text())
    first = content["images"][0]
    content["images"] = [first | {"id": i} for i in range(1, 9)]
    own = [a for a in content["annotations"] if a["image_id"] == first["id"]]
    content["annotations"] = [a | {"image_id": i, "id": 100 * i + a["id"]} for i in range(1, 9) for a in own]
    (twins / "train.json").write_text(json.dumps(content))
    for name, accumulate in (("whole", 1), ("parts", 2)):
        config = recipe(twins, norm_eval=True, flip=0, accumulate=accumulate, warmup_steps=0)
        train(config, folder / name, stop_after=1)
    whole, parts = weights(folder / "whole"), weights(folder / "parts")
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_a_model_of_other_classes_is_a_start_and_what_was_kept_is_reported(data, folder):
    train(recipe(data), folder / "run", stop_after=1)
    other = shutil.copytree(data, folder / "other")
    for split in ("train", "val"):
        content = json.loads((other / f"{split}.json").read_text())
        content["categories"][0]["name"] = "pink"
        content["categories"].append({"id": 9, "name": "grey"})
        (other / f"{split}.json").write_text(json.dumps(content))
    reported = []
    config = recipe(other, init=str(folder / "run/epoch_0001"), lr=0.0)
    train(config, folder / "tuned", stop_after=1, on_start=lambda train_data, val_data, loaded: reported.append(loaded))
    assert reported[0].shared_classes == ("green", "blue")
    assert set(reported[0].skipped) == {"head.predictor.classes.weight", "head.predictor.classes.bias"}
    assert "but for the classes green, blue" in reported[0].line()
    before, after = weights(folder / "run"), weights(folder / "tuned")
    assert after["head.predictor.classes.weight"].shape[0] == 4
    assert torch.equal(after["head.predictor.classes.weight"][1:3], before["head.predictor.classes.weight"][1:3])
    assert not torch.equal(after["head.predictor.classes.weight"][0], before["head.predictor.classes.weight"][0])
    assert torch.equal(after["head.predictor.boxes.weight"], before["head.predictor.boxes.weight"])

    shutil.rmtree(folder / "run")  # a resumed run needs its own checkpoint alone
    train(config, folder / "tuned", resume=folder / "tuned/epoch_0001", stop_after=2)
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(config, folder / "anew")


@pytest.mark.parametrize(("option", "value"), [("precision", "bf16"), ("channels_last", True)])
def test_options_of_speed_change_how_it_computes_and_hardly_what(data, folder, monkeypatch, option, value):
    runs, original = [], training.start
    monkeypatch.setattr(training, "start", lambda *arguments: runs.append(original(*arguments)) or runs[-1])
    losses = {}
    for name, options in (("usual", {}), (option, {option: value})):
        reports = []
        config = recipe(data, **options)
        train(config, folder / name, stop_after=1, on_step=lambda r, kept=reports: kept.append(r.metrics["train/loss"]))
        losses[name] = reports
    assert losses[option] == pytest.approx(losses["usual"], rel=0.05)
    features, layout = [], {"memory_format": torch.channels_last}
    for run in runs:
        run.model.backbone.register_forward_hook(lambda module, inputs, outputs: features.append(outputs[0]))
        detect_all(run.model, read_data(config.data)[1], run.recipe, torch.device("cpu"))
    usual, changed = features[0], features[-1]
    assert (usual.dtype, usual.is_contiguous(**layout)) == (torch.float32, False)
    if option == "precision":
        assert losses[option] != losses["usual"]
        assert changed.dtype == torch.bfloat16
        assert {t.dtype for t in weights(folder / option).values() if t.is_floating_point()} == {torch.float32}
    else:
        assert changed.is_contiguous(**layout)


def test_checkpointing_changes_no_bit_and_folded_norms_hardly_any(data, folder, monkeypatch):
    runs, original, reports = [], training.start, []
    monkeypatch.setattr(training, "start", lambda *arguments: runs.append(original(*arguments)) or runs[-1])
    for name, options in (("usual", {}), ("again", {"checkpointing": True}), ("folded", {"fold_norms": True})):
        config = recipe(data, norm_eval=True, epochs=2, milestones=[], evaluate_every=2, **options)
        train(config, folder / name, stop_after=1, on_step=reports.append)
    assert [run.model.head.checkpointing for run in runs] == [False, True, False]
    assert runs[0].config_hash == runs[1].config_hash != runs[2].config_hash
    usual, again, folded = (weights(folder / name) for name in ("usual", "again", "folded"))
    assert all(torch.equal(again[name], value) for name, value in usual.items())
    assert not all(torch.equal(folded[name], value) for name, value in usual.items())
    for name, value in usual.items():
        torch.testing.assert_close(folded[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    peaks = [report.metrics["perf/memory_gb"] for report in reports]
    assert 0.05 < peaks[0] <= peaks[-1] < 50


@pytest.mark.parametrize(("deterministic", "buckets"), [(True, 1), (False, 1), (False, 0)])
def test_the_same_bits_are_asked_for_unless_told_otherwise(deterministic, buckets, data, folder, monkeypatch):
    """Else cuDNN looks for the quickest kernels, where shapes of batches recur; not while it evaluates, where they do not."""
    config = recipe(data, **({} if deterministic else {"deterministic": False}))
    config = replace(config, data=replace(config.data, buckets=buckets))
    modes = []

    def on_step(_report) -> None:
        modes.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))

    before, evaluating = torch.backends.cudnn.benchmark, []
    detect = Detector.detect_views
    monkeypatch.setattr(
        Detector, "detect_views", lambda *views: evaluating.append(torch.backends.cudnn.benchmark) or detect(*views)
    )
    try:
        train(config, folder / "run", stop_after=2, on_step=on_step)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = before
    assert set(modes) == {(deterministic, not deterministic and buckets > 0)}
    assert set(evaluating) == {False}


def test_compiling_compiles_once_a_shape_and_changes_no_bit_of_what_is_compiled(data, folder, monkeypatch):
    """By dynamo's interpreter: what it captures is a whole graph, its counters say how many; inductor takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    for name, compiled in (("usual", False), ("compiled", True)):
        config = recipe(data, epochs=2, milestones=[], evaluate_every=2)
        options = {"data": replace(config.data, buckets=1), "train": replace(config.train, compile=compiled)}
        train(replace(config, **options), folder / name)
        assert counters["stats"].get("unique_graphs", 0) == compiled  # in two epochs and an evaluation
    assert not counters["graph_break"]
    usual, compiled = (weights(folder / name, epoch=2) for name in ("usual", "compiled"))
    assert all(torch.equal(compiled[name], value) for name, value in usual.items())


def test_compiling_needs_few_shapes_and_a_compiler(data, folder, monkeypatch):
    with pytest.raises(ConfigError, match=r"train\.compile: every size of batch would be compiled.*data\.buckets=2"):
        recipe(data, compile=True)
    config = recipe(data)
    config = replace(config, data=replace(config.data, buckets=1), train=replace(config.train, compile=True))
    monkeypatch.setattr(run_state.shutil, "which", lambda _name: None)
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigError, match=r"train\.compile: needs a C\+\+ compiler .* there is no g\+\+"):
        train(config, folder / "run")
    model = build_detector(config.model, 3, config.predict)
    with pytest.raises(ConfigError, match=r"train\.compile: needs a C compiler .* there is no gcc"):  # Triton's
        run_state.prepare(model, config.train, torch.device("cuda"))


@pytest.mark.parametrize("detector", ["ddod", "vfnet"])
def test_compiled_deformable_convolutions_of_a_gpu_do_not_repeat(data, detector):
    config = replace(recipe(data).train, compile=True)
    model = build_detector(build(ModelConfig, {"detector": detector, **MODEL}), 3)
    with pytest.raises(ConfigError, match=r"deformable.* set deterministic=false or compile=false"):
        run_state.prepare(model, config, torch.device("cuda"))
    run_state.prepare(model, config, torch.device("cpu"))


RANK = """
import hashlib, json, sys
from dataclasses import replace
from pathlib import Path
import torch.distributed as dist
from tood import training
from tood.recipe import read_recipe

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
runs, start, said = [], training.start, {}
training.start = lambda *arguments: runs.append(start(*arguments)) or runs[-1]
for name in ("fixed", "moving"):
    reports = []
    training.train(read_recipe(folder / f"{name}.json"), folder / name, stop_after=1, on_epoch=reports.append)
    tensors = [*runs[-1].model.state_dict().values(), *(runs[-1].ema.tensors.values() if runs[-1].ema else ())]
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
    found = reports[0].detections
    said[name] = {"digest": digest, "found": found and [column.tolist() for column in found]}
config, stops, asked = read_recipe(folder / "moving.json"), [], iter([False, False, True])
config = replace(config, train=replace(config.train, checkpoint_minutes=1e-9))
try:
    training.train(config, folder / "stopped", told_to_stop=lambda: rank == 1 and next(asked, True), on_checkpoint=stops.append)
except training.StoppedError:
    training.train(config, folder / "stopped", stop_after=1, resume=folder / "stopped/step_00000002")
said["stops"] = [[report.step, report.checkpoint and report.checkpoint.name, report.stops] for report in stops]
(folder / f"rank{rank}.json").write_text(json.dumps(said))
dist.destroy_process_group()
"""


def test_two_ranks_hold_the_same_weights_and_share_an_evaluation(data, folder):
    fixed = recipe(data, norm_eval=True)
    moving = recipe(data, norm_eval=False, ema=0.9, batch_size=2)  # BatchNorm's statistics are each rank's own while it trains
    for name, config in (("fixed", fixed), ("moving", moving)):
        (folder / f"{name}.json").write_text(json.dumps(to_dict(config)))
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(folder)]) for rank in (0, 1)]
    try:
        assert [rank.wait(400) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    for name in ("fixed", "moving"):
        assert first[name]["digest"] == second[name]["digest"]
        assert second[name]["found"] is None

    # Every step is time for a checkpoint, and after its third the second rank was told to stop: heard a step later by both.
    assert first["stops"] == [[2, "step_00000002", False], [4, "step_00000004", True]]
    assert second["stops"] == [[2, None, False], [4, None, True]]
    assert files(folder / "stopped/epoch_0001") == files(folder / "moving/epoch_0001")

    reports = []
    train(fixed, folder / "one", stop_after=1, on_epoch=reports.append)
    one, two = weights(folder / "one"), weights(folder / "fixed")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    _assert_same_detections(first["fixed"]["found"], reports[0].detections)
    model = build_detector(moving.model, 3, moving.predict)
    model.load_state_dict(weights(folder / "moving"))
    alone = detect_all(model, read_split(moving.data, "val"), moving, torch.device("cpu"))
    _assert_same_detections(first["moving"]["found"], alone)


def _assert_same_detections(shared: list[list], alone: Detections) -> None:
    """Each image once: no detection is missing or double."""
    assert len(alone.scores) == 3 * 20
    np.testing.assert_array_equal(shared[0], alone.image_ids)
    np.testing.assert_allclose(shared[2], alone.scores, rtol=1e-3)
