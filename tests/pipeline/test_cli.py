"""The command's good roads, in process and without Ray: what it prints, writes and returns."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from pipeline.cli import main
from pipeline.config import experiment_of
from pipeline.experiment_files import load_values
from pipeline.verbs import experiments
from tests.tiny import COLOURS, write_experiment
from tood.checkpoint import ModelInfo, save_model
from tood.config import identity
from tood.detectors import build_detector
from tood.errors import ToodError

GOLDEN = Path(__file__).parents[1] / "golden/cocoeval"
FIGURES = [
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """An experiment's file, its data beside it, and `model`, a model of fresh weights."""
    folder = tmp_path_factory.mktemp("tiny")
    file = write_experiment(folder)
    experiment = experiment_of(load_values(str(file)))
    torch.manual_seed(0)
    detector = build_detector(experiment.model, len(COLOURS))
    info = ModelInfo(identity(experiment), experiment.hash, list(COLOURS), [1, 2, 3], 1, 4, {}, "0" * 64, {})
    save_model(folder / "model", detector.state_dict(), info)
    return file


def test_a_dry_run_prints_all_keys_with_settings_on_either_side_of_options(tiny, capsys):
    assert main(["train", str(tiny), "train.lr=0.5", "--dry-run", "train.epochs=9", "train.milestones=[7]"]) == 0
    printed = capsys.readouterr().out
    values = yaml.safe_load(printed)
    assert (values["train"]["lr"], values["train"]["epochs"], values["train"]["milestones"]) == (0.5, 9, [7])
    assert values["predict"]["nms_iou"] == 0.6  # a default, written out
    assert "# learning rate 0.5 at 4 images a step" in printed
    assert not (tiny.parent / "runs").exists()


def test_a_sweeps_dry_run_lists_its_trials_with_their_hashes_and_the_work(tiny, capsys):
    axes = "sweep.space={model.objective.alpha: [0.5, 1.0], train.lr: [0.01, 0.1]}"
    assert main(["sweep", str(tiny), axes, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    values = load_values(str(tiny), [axes])
    for alpha, lr in ((0.5, 0.01), (0.5, 0.1), (1.0, 0.01), (1.0, 0.1)):
        trial = experiment_of(values, {"model.objective.alpha": alpha, "train.lr": lr})
        assert f"# alpha={alpha:g} lr={lr:g}".strip() in printed
        assert trial.hash in printed
    assert "# 4 trials x 4 epochs" in printed
    assert "# 16 training images: 16 steps a trial, 256 images in all" in printed
    assert yaml.safe_load(printed)["sweep"]["space"]["train.lr"] == [0.01, 0.1]


def test_the_shipped_experiments_are_listed_with_what_they_are(capsys):
    assert main(["experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    described = dict(line.split(maxsplit=1) for line in lines)
    assert {"demo", "sweeps/demo", "tood_r50_fpn_1x", "sweeps/table4_alpha_beta"} <= described.keys()
    assert "42.5" in described["tood_r50_fpn_1x"]


@pytest.mark.parametrize("name", ["basic", "crowd"])
def test_figures_of_files_are_cocos_own(name, capsys):
    files = ["--annotations", str(GOLDEN / f"{name}_gt.json"), "--predictions", str(GOLDEN / f"{name}_dt.json")]
    assert main(["evaluate", *files, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures) == FIGURES
    recorded = json.loads((GOLDEN / "stats.json").read_text())[name]["coco"]["stats"]
    assert list(figures.values()) == pytest.approx(recorded, abs=1e-9)
    assert main(["evaluate", *files, "--per-class"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["AP", f"{figures['AP']:.4f}"]
    assert len(lines) > 12
    assert all(" AP50 " in line for line in lines[12:])


def test_a_sound_data_set_is_counted(tiny, capsys):
    assert main(["data", "check", str(tiny)]) == 0
    train, val = capsys.readouterr().out.splitlines()
    assert train.startswith("train: 16 images (0 without objects), ")
    assert val.startswith("val: 8 images (0 without objects), ")
    assert "3 classes" in val
    data = tiny.parent / "data"
    assert main(["data", "check", "--annotations", str(data / "val.json"), "--images", str(data / "val")]) == 0
    assert capsys.readouterr().out.strip() == val.replace("val:", "data:")


def test_pictures_and_results_of_a_model(tiny, tmp_path, capsys):
    images, output = tiny.parent / "data/val", tmp_path / "out"
    single = shutil.copy(images / "3.png", tmp_path / "single.png")
    model = ["predict", str(tiny.parent / "model"), str(images), str(single), "--output", str(output)]
    assert main([*model, "--threshold", "0", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    found = json.loads((output / "predictions.json").read_text())
    assert json.loads((output / "images.json").read_text()) == summary
    assert [image["id"] for image in summary] == list(range(1, 10))
    for image in summary:
        name = Path(image["file_name"])
        picture = Image.open(output / f"{image['id']:04d}-{name.stem}.png")
        assert picture.width >= 64
        assert sum(d["image_id"] == image["id"] for d in found) == image["detections"]
    assert {d["category_id"] for d in found} <= {1, 2, 3}
    by_image = [[(d["bbox"], d["score"]) for d in found if d["image_id"] == image_id] for image_id in (3, 9)]
    assert by_image[0] == by_image[1] != []  # the same picture twice
    lowest = min(d["score"] for d in found)
    assert main([*model, "--threshold", str(lowest + 1e-4)]) == 0
    assert 0 < len(json.loads((output / "predictions.json").read_text())) < len(found)


def test_figures_of_a_model_are_those_of_the_detections_it_writes(tiny, tmp_path, capsys):
    file = tmp_path / "found.json"
    settings = [str(tiny), "--json", "predict.score_threshold=0", "predict.max_detections=5"]
    assert main(["evaluate", "--model", str(tiny.parent / "model"), "--output", str(file), *settings]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures) == FIGURES
    assert len(json.loads(file.read_text())) == 8 * 5
    annotations = str(tiny.parent / "data/val.json")
    assert main(["evaluate", "--predictions", str(file), "--annotations", annotations, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == figures


def test_what_the_command_returns(monkeypatch, capsys):
    def ends(error: BaseException):
        def run(options):
            raise error

        return run

    monkeypatch.setattr(experiments, "_experiments", ends(KeyboardInterrupt()))
    assert main(["experiments"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    monkeypatch.setattr(experiments, "_experiments", ends(ToodError("what, where, what to do")))
    assert main(["experiments"]) == 2
    assert capsys.readouterr().err == "error: what, where, what to do\n"
    monkeypatch.setattr(experiments, "_experiments", ends(AssertionError("a mistake of ours")))
    with pytest.raises(AssertionError):  # which must not look like the person's
        main(["experiments"])
    with pytest.raises(SystemExit) as left:
        main(["train", "--help"])
    assert left.value.code == 0
    assert "--stop-after" in capsys.readouterr().out


def test_a_run_without_evaluation_ends_with_json_all_the_same(tiny, monkeypatch, capsys):
    from pipeline import runs
    from pipeline.train import Progress

    reached = Progress(epoch=1, prefix="p", metrics={"train/loss": float("nan")})
    monkeypatch.setattr(runs, "train_experiment", lambda *_, **__: (reached, None))
    assert main(["train", str(tiny), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    outcome = json.loads(line, parse_constant=refuse)
    assert (outcome["best_value"], outcome["metrics"], outcome["epoch"]) == (None, {"train/loss": None}, 1)
