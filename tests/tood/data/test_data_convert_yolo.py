"""YOLO to COCO: layouts, lines, what is refused by file and line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tood.data.coco import read_coco
from tood.data.convert_yolo import convert_yolo
from tood.errors import DataError

YAML = "path: ../datasets/cells\ntrain: images/train\nval: [images/val]\nnc: 2\nnames: [red, white]\n"


def put(root: Path, name: str, labels: str | None, size: tuple[int, int] = (100, 50), **save) -> None:
    image = root / name
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(image, **save)
    if labels is not None:
        file = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(labels)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    put(root, "images/train/b.jpg", "0 0.5 0.5 0.2 0.4\n1 0.05 0.5 0.100001 1.0\n\n")
    put(root, "images/train/sub/a.png", "1.0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.4\n0 0.5 0.5 0 0.1\n0 .5 .5 .1 .1\n0 .5 .5 .1 .1\n")
    put(root, "images/val/c.jpg", "")
    put(root, "images/val/d.jpg", None)
    (root / "labels/val/gone.txt").write_text("0 .5 .5 .1 .1")
    (root / "data.yaml").write_text(YAML)
    return root


def document(root: Path, split: str) -> dict:
    return json.loads((root / f"coco/instances_{split}.json").read_text())


def test_boxes_polygons_and_ids(root):
    done = convert_yolo(root, root / "coco")
    train = document(root, "train")
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in train["images"]] == [
        (1, "images/train/b.jpg", 100, 50),
        (2, "images/train/sub/a.png", 100, 50),
    ]
    assert train["categories"] == [{"id": 1, "name": "red"}, {"id": 2, "name": "white"}]
    ids = [(a["id"], a["image_id"], a["category_id"]) for a in train["annotations"]]
    assert ids == [(1, 1, 1), (2, 1, 2), (3, 2, 2), (4, 2, 1)]
    boxes = [[40, 15, 20, 20], [0, 0, 10, 50], [10, 10, 20, 20], [45, 22.5, 10, 5]]
    for a, box in zip(train["annotations"], boxes, strict=True):
        assert a["bbox"] == pytest.approx(box, abs=1e-3)
    assert [i["id"] for i in document(root, "val")["images"]] == [3, 4]
    assert done.splits["train"].boxes == {"red": 2, "white": 2}
    assert done.clipped == ()
    assert [line.split(":")[1] for line in done.dropped] == ["2", "4"]
    assert done.unlabelled == ("images/val/d.jpg",)
    assert done.left_out == ("labels/val/gone.txt",)


def test_the_result_is_read_without_complaint(root):
    for split in convert_yolo(root, root / "coco").splits.values():
        assert len(read_coco(split.path, root).images) == 2


@pytest.mark.parametrize(
    "yaml",
    ["names: {0: red, 1: white}", "train: train.txt\nval: images/val\nnames: [red, white]",
     "path: .\ntrain: ./images/train/\nval: images/val\nnames: [red, white]",
     "path: /content/somewhere\ntrain: images/train\nvalid: images/val\nnames: [red, white]"],
)  # fmt: skip
def test_the_ways_in_which_splits_are_said(root, yaml):
    (root / "train.txt").write_text("./images/train/b.jpg\nimages/train/sub/a.png\n\n")
    (root / "data.yaml").write_text(yaml)
    done = convert_yolo(root, root / "coco")
    assert {name: split.images for name, split in done.splits.items()} == {"train": 2, "val": 2}


def test_labels_may_lie_beside_their_images(tmp_path):
    put(tmp_path, "flat/a.jpg", "0 .5 .5 .5 .5")
    (tmp_path / "any.yaml").write_text("train: flat\nnames: [thing]")
    assert convert_yolo(tmp_path, tmp_path / "coco").splits["train"].boxes == {"thing": 1}


def problems(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        convert_yolo(root, root / "coco")
    assert not (root / "coco").exists()
    return "\n".join(caught.value.problems)


def test_every_bad_line_is_named_by_file_and_number(root):
    lines = ["2 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "x .5 .5 .1 .1", "0 .5 .5 .1", "0 .5 nan .1 .1", "0 .5 .5 .1 y", "0 40 15 20 20",
             "0 .1 .1 .2 .2 .3", "1.5 .5 .5 .1 .1", "0 .5 .5 .1 .1"]  # fmt: skip
    (root / "labels/train/b.txt").write_text("\n".join(lines))
    (root / "images/val/c.jpg").write_bytes(b"no image")
    found = problems(root)
    assert [f"b.txt:{i}: " in found for i in range(1, 11)] == [True] * 9 + [False]
    assert "c.jpg: not an image" in found


@pytest.mark.parametrize(
    ("yaml", "says"),
    [("train: ../images\nnames: [a]", "leaves"), ("train: /etc\nnames: [a]", "leaves"),
     ("train: nowhere\nnames: [a]", "no such folder"),
     ("train: [3]\nnames: [a]", "expected a folder"), ("train: images/train", "`names`"), ("names: {1: a, 2: b}", "`names`"),
     ("names: [a, a]", "twice"), ("names: !!python/object/apply:os.system [exit]", "the tag"), ("- a", "expected a mapping"),
     ("names: [a]\ntrain: out", "a link leaves"), ("names: [red, white]\ntrain: images/train\nval: images", "again in val")],
)  # fmt: skip
def test_what_data_yaml_must_not_say(root, tmp_path, yaml, says):
    (tmp_path / "elsewhere").mkdir()
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "data.yaml").write_text(yaml)
    assert says in problems(root)


def test_a_linked_image_and_a_turned_one_are_refused(root, tmp_path):
    (tmp_path / "x.jpg").write_bytes((root / "images/train/b.jpg").read_bytes())
    (root / "images/train/x.jpg").symlink_to(tmp_path / "x.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    put(root, "images/val/e.jpg", "0 .5 .5 .5 .5", exif=exif)
    found = problems(root)
    assert "images/train/x.jpg: a link leaves" in found
    assert "e.jpg: its EXIF tag turns" in found


def test_no_labels_at_all_is_a_mistake(tmp_path):
    put(tmp_path, "images/train/a.jpg", None)
    (tmp_path / "data.yaml").write_text("names: [a]")
    assert "labels/train: no such folder of labels" in problems(tmp_path)
