"""`tood data stats` whole: figures, table and pictures of an experiment and of a file, from a folder and from an address."""

import json

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.data.pack import pack
from pipeline.data.room import leave_all
from pipeline.plots import data as plots
from tests.pipeline.plots.test_runs import picture
from tests.tiny import write_experiment
from tests.web import web_server
from tood.data.coco import CocoData
from tood.data.record import ImageRecord
from tood.data.stats import statistics

PICTURES = ("classes.png", "sizes.png", "shapes.png", "points.png")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("tiny"))


def test_an_experiments_splits_are_told_apart(tiny, tmp_path, capsys):
    assert main(["data", "stats", str(tiny), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "out/stats.json").read_text())
    train, val = figures["splits"]["train"], figures["splits"]["val"]
    assert (train["images"], val["images"]) == (16, 8)
    content = json.loads((tiny.parent / "data/train.json").read_text())
    assert train["objects"] == len(content["annotations"]) == sum(c["objects"] for c in train["classes"].values())
    assert printed.splitlines()[0].split() == ["resize", "to", "64", "x", "64", "train", "val"]
    assert f"{train['objects']:,}" in next(line for line in printed.splitlines() if line.startswith("objects "))
    assert all((tmp_path / "out" / name).stat().st_size > 10_000 for name in PICTURES)


def test_of_a_file_and_of_an_address_the_annotations_are_enough(tiny, tmp_path, capsys):
    data = tiny.parent / "data"
    (tmp_path / "val.json").write_text((data / "val.json").read_text())
    command = ["data", "stats", str(tiny), "--json", "--output", str(tmp_path / "out")]
    assert main([*command, "--annotations", str(tmp_path / "val.json")]) == 0
    alone = json.loads(capsys.readouterr().out)["splits"]["val"]
    pack(data, str(tmp_path / "packed"), say=lambda line: None)
    with web_server(tmp_path / "packed") as server:
        assert main([*command, f"data.root={server.url}", f"cache.dir={tmp_path / 'cache'}"]) == 0
        assert set(server.requests) == {"manifest.json", "train.json", "val.json"}
    leave_all()
    assert json.loads(capsys.readouterr().out)["splits"]["val"] == alone
    assert alone["images"] == 8


def stats(classes: int, objects: int):
    draw = np.random.default_rng(1)
    boxes = draw.uniform(0, 100, (objects, 4)).astype(np.float32)
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] * 3 + 1
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float64)
    labels = np.arange(objects) % classes
    one = ImageRecord(1, None, 500, 500, boxes, labels, np.zeros(objects, bool), areas)
    data = CocoData((one,), tuple(f"class {k}" for k in range(classes)), tuple(range(classes)), None, "")
    return statistics(data, long_side=500, short_side=500)


@pytest.mark.parametrize(("classes", "objects"), [(2, 300), (plots.SHOWN_CLASSES + 5, 300), (1, 0)])
def test_pictures_of_few_of_many_and_of_none(classes, objects):
    splits = {"train": stats(classes, objects), "val": stats(classes, objects // 2)}
    figure = plots.classes(splits)
    assert len(figure.axes) == 2
    assert len(figure.axes[0].patches) == min(classes, plots.SHOWN_CLASSES)
    picture(figure)
    picture(plots.sizes(splits))
    picture(plots.shapes(splits))
    figure = plots.points(splits, 13)
    bars = sum(bar.get_height() for bar in figure.axes[1].patches)
    assert bars == pytest.approx(1 if objects else 0)
    picture(figure)
