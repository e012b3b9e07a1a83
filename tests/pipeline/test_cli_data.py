"""The verbs on data sets: what is printed, and which arguments go together."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.cli import main
from pipeline.config import experiment_of
from pipeline.data.room import leave_all
from pipeline.experiment_files import load_values
from tests.tiny import COLOURS, write_experiment
from tests.web import web_server
from tood.checkpoint import ModelInfo, save_model
from tood.config import identity
from tood.detectors import build_detector


@pytest.fixture
def yolo(tmp_path) -> Path:
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (tmp_path / "set" / part / split).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / f"set/images/{split}/a.png")
        (tmp_path / f"set/labels/{split}/a.txt").write_text("0 .5 .5 .5 .5\n0 .5 .5 0 0\n")
    (tmp_path / "set/data.yaml").write_text("names: [thing]\n")
    return tmp_path / "set"


def test_a_converted_set_is_used_by_the_settings_that_are_printed(yolo, capsys):
    assert main(["data", "convert", "yolo", "--root", str(yolo), "--output", str(yolo / "coco")]) == 0
    printed = capsys.readouterr().out
    assert "train: 1 images, 1 objects (1 thing) -> " in printed
    assert "dropped: 2\n" in printed
    settings = printed.splitlines()[-1].removeprefix("use it by: ").split()
    assert main(["data", "check", *settings]) == 0
    assert "val: 1 images (0 without objects), 1 objects" in capsys.readouterr().out
    assert main(["data", "convert", "yolo", "--root", str(yolo), "--output", str(yolo / "coco"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["splits"]["val"]["boxes"] == {"thing": 1}
    assert len(summary["dropped"]) == 2


@pytest.mark.parametrize(
    "arguments",
    ["voc --output x", "yolo --output x --images a --annotations b", "voc --root a --images b --annotations c --output x",
     "voc --images a --output x", "roboflow --output x", "voc --root a --lists b --output x"],
)  # fmt: skip
def test_arguments_that_do_not_go_together_are_refused(arguments, capsys):
    assert main(["data", "convert", *arguments.split()]) == 2
    assert "tood data convert: give --root FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["evaluate", "analyze"])
def test_a_models_figures_do_not_depend_on_where_the_data_are(tmp_path, capsys, verb):
    tiny = write_experiment(tmp_path)
    experiment = experiment_of(load_values(str(tiny)))
    torch.manual_seed(0)
    info = ModelInfo(identity(experiment), experiment.hash, list(COLOURS), [1, 2, 3], 1, 4, {}, "0" * 64, {})
    save_model(tmp_path / "model", build_detector(experiment.model, 3).state_dict(), info)
    model = {
        "evaluate": ["--model", str(tmp_path / "model")],
        "analyze": [str(tmp_path / "model"), "--output", str(tmp_path / "out")],
    }
    command = [verb, *model[verb], str(tiny), "--json", f"cache.dir={tmp_path / 'cache'}", "predict.score_threshold=0"]
    assert main(command) == 0
    from_disk = json.loads(capsys.readouterr().out)
    with web_server(tmp_path / "data") as server:
        assert main([*command, f"data.root={server.url}"]) == 0
        assert "train.json" not in server.requests  # the val split alone is fetched
    leave_all()
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == from_disk
    assert len(printed) == 1


def test_check_reads_an_address_and_lists_what_is_wrong(tmp_path, capsys):
    tiny = write_experiment(tmp_path)
    command = ["data", "check", str(tiny), f"cache.dir={tmp_path / 'cache'}"]
    with web_server(tmp_path / "data") as server:
        assert main([*command, f"data.root={server.url}"]) == 0
        assert "train: 16 images" in capsys.readouterr().out
        (tmp_path / "data/val/2.png").rename(tmp_path / "data/val/away.png")
        (tmp_path / "data/val.json").write_text((tmp_path / "data/val.json").read_text() + " ")
        assert main([*command, f"data.root={server.url}", "--json"]) == 2
    leave_all()
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert "lists images that are not there" in problem
    assert problem.endswith("val/2.png")
