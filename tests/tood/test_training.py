"""Training, small and real: the same bits again, on from a checkpoint; what is refused and what ends a run."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tests.tood.tiny_recipe import files, recipe, weights
from tood import training
from tood.checkpoint import load_checkpoint, load_model, save_model
from tood.config import AugmentConfig, to_dict
from tood.errors import ConfigError, DataError, DivergedError, OutOfMemoryError
from tood.training import train


@pytest.mark.parametrize(("ema", "epochs"), [(0.0, 4), (0.9, 2)], ids=["plain", "averaged"])
def test_a_seed_gives_the_same_bits_again_and_after_a_stop(data, folder, ema, epochs):
    config, half = recipe(data, ema=ema, epochs=epochs, evaluate_every=3), epochs // 2
    reports = []
    train(config, folder / "through", on_epoch=reports.append)
    train(config, folder / "stopped", stop_after=half)
    assert len(list((folder / "stopped").iterdir())) == half
    middle, last = f"epoch_{half:04d}", f"epoch_{epochs:04d}"
    assert files(folder / "stopped" / middle) == files(folder / "through" / middle)
    train(config, folder / "resumed", resume=folder / "stopped" / middle)
    assert len(list((folder / "resumed").iterdir())) == epochs - half
    assert files(folder / "resumed" / last) == files(folder / "through" / last)

    assert [r.figures is not None for r in reports] == [epoch in (3, epochs) for epoch in range(1, epochs + 1)]
    assert [r.last for r in reports] == [False] * (epochs - 1) + [True]
    measured = {name: value for name, value in reports[-1].metrics.items() if name.startswith("val/")}
    assert load_model(folder / "through" / last).info.metrics == measured
    assert "val/AP" in measured
    kept = load_checkpoint(folder / "through" / last)
    assert (kept.info.epoch, kept.info.step) == (epochs, 2 * epochs)
    own = {k.removeprefix("weights."): v for k, v in kept.tensors.items() if k.startswith("weights.")}
    assert own.keys() == (kept.weights.keys() if ema else set())
    if ema:
        assert not torch.equal(own["head.predictor.classes.weight"], kept.weights["head.predictor.classes.weight"])


def test_a_run_of_mixed_images_goes_on_into_its_last_epochs_without_them_to_the_bit(data, folder):
    config = recipe(data, epochs=3)
    config = replace(config, data=replace(config.data, augment=AugmentConfig(mosaic=0.7, mixup=0.5, last_epochs_off=1)))
    train(config, folder / "through")
    train(config, folder / "resumed", resume=folder / "through/epoch_0001")
    assert files(folder / "resumed/epoch_0003") == files(folder / "through/epoch_0003")
    train(recipe(data, epochs=3), folder / "plain", stop_after=1)
    assert files(folder / "plain/epoch_0001") != files(folder / "through/epoch_0001")


def test_a_checkpoint_of_another_configuration_is_not_resumed(data, folder):
    train(recipe(data), folder / "run", stop_after=1)
    with pytest.raises(ConfigError, match=r"epoch_0001: was written by another configuration \(hash \w{12}, here \w{12}\)"):
        train(recipe(data, seed=1), folder / "other", resume=folder / "run/epoch_0001")
    assert not (folder / "other").exists()
    train(recipe(data, seed=1), folder / "seed", stop_after=1)
    assert not torch.equal(
        weights(folder / "seed")["head.predictor.boxes.weight"], weights(folder / "run")["head.predictor.boxes.weight"]
    )


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(data, folder):
    train(recipe(data), folder / "run", stop_after=1)
    model = load_model(folder / "run/epoch_0001")
    model.weights["head.predictor.classes.weight"][:] = float("nan")
    save_model(folder / "broken", model.weights, model.info)
    with pytest.raises(DivergedError, match=r"epoch 1, step 1: training has diverged \(loss cls nan, .*train\.lr"):
        train(recipe(data, init=str(folder / "broken")), folder / "diverged")
    with pytest.raises(DivergedError, match=r"epoch 2, step 3: training has diverged \(loss cls 0, box 0\)"):
        train(recipe(data, lr=100, warmup_steps=0, evaluate_every=4), folder / "collapsed")
    assert not (folder / "diverged").exists()
    assert [p.name for p in (folder / "collapsed").iterdir()] == ["epoch_0001"]


def test_memory_that_gives_out_in_a_step_is_one_clear_error(data, folder, monkeypatch):
    def exhausted(*_) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr("tood.training.learning_rate", exhausted)
    with pytest.raises(OutOfMemoryError, match=r"4 images at once do not fit .* 9\.00 GiB.*; set train\.accumulate=2 or"):
        train(recipe(data), folder / "exhausted")


def test_the_command_trains_from_a_file_goes_on_and_refuses_in_one_line(data, folder, capsys):
    file = folder / "recipe.json"
    file.write_text(json.dumps(to_dict(recipe(data, epochs=2, milestones=[]))))
    command = [str(file), "--output", str(folder / "run")]
    assert training.main([*command, "--stop-after", "1"]) == 0
    assert training.main([*command, "--resume"]) == 0
    assert [p.name for p in sorted((folder / "run").iterdir())] == ["epoch_0001", "epoch_0002"]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" loss")[0] for line in printed] == [
        "epoch 1/2 step 1/2", "epoch 1/2 step 2/2", printed[2], "epoch 2/2 step 1/2", "epoch 2/2 step 2/2", printed[5],
    ]  # fmt: skip
    assert printed[5].startswith("epoch 2 done: val/AP ")
    for text, message in (("{", "is not JSON"), ('{"trian": {}}', "did you mean 'train'"), (None, "cannot be read")):
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        assert training.main([str(file)]) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        assert said.err.startswith("error: ")
        assert message in said.err


def test_what_reading_dropped_is_nothing_to_be_found(data, folder):
    """Boxes that are none would end the run behind its first epoch, those without area or outside their image lower its AP."""
    config, reports = recipe(data, epochs=1, milestones=[]), {}
    other = shutil.copytree(data, folder / "other")
    content = json.loads((other / "val.json").read_text())
    boxes = [[], [1, 1, float("nan"), 5], "1,2,3,4", [5, 5, 0, 10], [200, 200, 10, 10]]
    bad = [content["annotations"][0] | {"id": 900 + i, "bbox": box} for i, box in enumerate(boxes)]
    (other / "val.json").write_text(json.dumps(content | {"annotations": bad + content["annotations"]}))
    for root, invalid_boxes in ((data, "error"), (other, "drop")):
        at = replace(config, data=replace(config.data, root=str(root), invalid_boxes=invalid_boxes))
        train(at, folder / invalid_boxes, on_epoch=lambda report, name=invalid_boxes: reports.update({name: report}))
    assert reports["drop"].figures.summary == reports["error"].figures.summary
    assert reports["drop"].figures.per_class == reports["error"].figures.per_class
    assert reports["drop"].checkpoint.is_dir()


def test_splits_of_different_classes_and_uneven_batches_are_refused(data, folder):
    with pytest.raises(ConfigError, match="accumulate: 3 does not divide"):
        recipe(data, accumulate=3)
    with pytest.raises(ConfigError, match="milestones"):
        recipe(data, milestones=[3, 2])
    other = shutil.copytree(data, folder / "other")
    content = json.loads((other / "val.json").read_text())
    content["categories"][0]["name"] = "pink"
    (other / "val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"val\.json: its categories differ"):
        train(recipe(other), folder / "run")
