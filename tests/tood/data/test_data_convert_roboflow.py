"""Roboflow's three layouts give the same COCO files; what is odd or wrong in them is said."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.tood.data.test_data_convert import thing, voc
from tood.data.coco import read_coco
from tood.data.convert_roboflow import convert_roboflow
from tood.errors import DataError

NAMES = ["dog", "cat"]
# split -> images -> (class, x, y, width, height) of 100 x 50 px
OBJECTS = {
    "train": {"a_jpg.rf.1.jpg": [(0, 10, 10, 20, 20), (1, 40, 20, 10, 10)], "b_jpg.rf.2.jpg": []},
    "valid": {"c_jpg.rf.3.jpg": [(1, 0, 0, 50, 50)]},
    "test": {"d_jpg.rf.4.jpg": [(0, 50, 25, 50, 25)]},
}


def coco(root: Path) -> None:
    categories = [{"id": 0, "name": "animals", "supercategory": "none"}]
    categories += [{"id": i, "name": name, "supercategory": "animals"} for i, name in enumerate(NAMES, 1)]
    for split, images in OBJECTS.items():
        records = [{"id": i, "file_name": name, "width": 100, "height": 50} for i, name in enumerate(images)]
        objects = [(i, *o) for i, name in enumerate(images) for o in images[name]]
        annotations = [
            {"id": n, "image_id": i, "category_id": k + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "segmentation": []}
            for n, (i, k, *box) in enumerate(objects)
        ]
        content = {"info": {}, "images": records, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))


def yolo(root: Path) -> None:
    yaml = f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: {NAMES}\nroboflow: {{project: x}}\n"
    (root / "data.yaml").write_text(yaml)
    for split, images in OBJECTS.items():
        for part in ("images", "labels"):
            (root / split / part).mkdir()
        for name, objects in images.items():
            (root / split / name).rename(root / split / "images" / name)
            lines = [f"{k} {(x + w / 2) / 100} {(y + h / 2) / 50} {w / 100} {h / 50}" for k, x, y, w, h in objects]
            (root / split / "labels" / name).with_suffix(".txt").write_text("\n".join(lines))


def pascal(root: Path) -> None:
    for split, images in OBJECTS.items():
        for name, objects in images.items():
            things = [thing(NAMES[k], x, y, x + w, y + h) for k, x, y, w, h in objects]
            (root / split / name).with_suffix(".xml").write_text(voc(*things, size=(100, 50)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, images in OBJECTS.items():
        (tmp_path / split).mkdir()
        for name in images:
            Image.new("RGB", (100, 50)).save(tmp_path / split / name)
    return tmp_path


@pytest.mark.parametrize("layout", [coco, yolo, pascal])
def test_all_layouts_say_the_same(root, layout):
    layout(root)
    done = convert_roboflow(root, root / "coco")
    assert {name: split.images for name, split in done.splits.items()} == {"train": 2, "val": 1, "test": 1}
    seen, ids = {}, []
    for split, written in done.splits.items():
        data = read_coco(written.path, root)
        ids += [record.image_id for record in data.images]
        assert set(data.names) == set(NAMES)
        for record in data.images:
            boxes = [(data.names[k], *box.round(3).tolist()) for k, box in zip(record.labels, record.boxes, strict=True)]
            seen[split, record.path.name] = boxes
    assert ids == [1, 2, 3, 4]
    expected = {
        ({"valid": "val"}.get(split, split), name): [(NAMES[k], x, y, x + w, y + h) for k, x, y, w, h in objects]
        for split, images in OBJECTS.items()
        for name, objects in images.items()
    }
    assert seen == expected
    assert not any((done.dropped, done.clipped, done.resized, done.left_out, done.unlabelled))


def edit(root: Path, split: str, change) -> None:
    file = root / split / "_annotations.coco.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_first_category_that_has_objects_or_groups_nothing_stays(root):
    coco(root)
    edit(root, "train", lambda content: content["annotations"][0].update(category_id=0))
    assert list(convert_roboflow(root, root / "coco").splits["train"].boxes) == ["animals", *NAMES]


def test_everything_wrong_is_said_at_once(root):
    coco(root)
    (root / "test/d_jpg.rf.4.jpg").unlink()

    def damage(content: dict) -> None:
        one, two = content["annotations"]
        one.update(image_id=77)
        two.update(bbox=[1, 2, None, 4])
        content["annotations"].append({"id": 9, "image_id": 0, "category_id": 12, "bbox": [1, 2, 3, 4]})
        content["images"].append({"id": 5, "file_name": "../../etc/passwd"})

    edit(root, "train", damage)
    edit(root, "valid", lambda content: content["categories"].pop())
    with pytest.raises(DataError) as caught:
        convert_roboflow(root, root / "coco")
    found = "\n".join(caught.value.problems)
    for said in ("train/_annotations.coco.json: annotation 0: image_id 77", "annotation 1: bbox [1, 2, None, 4]",
                 "annotation 9: category_id 12", "'train/../../etc/passwd' leaves", "d_jpg.rf.4.jpg: cannot be read",
                 "valid/_annotations.coco.json: its categories differ"):  # fmt: skip
        assert said in found
    assert not (root / "coco").exists()


def test_sizes_and_boxes_that_do_not_fit_their_image_are_noted(root):
    coco(root)

    def change(content: dict) -> None:
        content["images"][0].update(width=90)
        content["annotations"][0].update(bbox=[90, 10, 30, 20])
        content["annotations"][1].update(bbox=[5, 5, 0, 9])

    edit(root, "train", change)
    done = convert_roboflow(root, root / "coco")
    assert [len(lines) for lines in (done.resized, done.clipped, done.dropped)] == [1, 1, 1]
    assert "annotation 1: cat" in done.dropped[0]


@pytest.mark.parametrize("splits", [[], ["train"]])
def test_other_folders_are_no_export(tmp_path, splits):
    for split in splits:
        (tmp_path / split).mkdir()
    with pytest.raises(DataError, match="COCO, YOLO or Pascal VOC" if splits else "has none of the folders"):
        convert_roboflow(tmp_path, tmp_path / "coco")
