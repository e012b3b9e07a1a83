"""Pascal VOC to COCO: ids, corners, splits, and what is refused."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tood.data.coco import read_coco
from tood.data.convert import convert_voc, convert_voc_folder
from tood.errors import DataError


def voc(*objects: str, size: tuple[int, int] = (64, 48)) -> str:
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>wrong.jpg</filename>{sides}{''.join(objects)}</annotation>"


def thing(name: str, *corners: object, more: str = "") -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    return f"<object><name>{name}</name>{more}<bndbox>{''.join(f'<{t}>{c}</{t}>' for t, c in tags)}</bndbox></object>"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four images a..d with XML, image sets train (c, a) and val (b)."""
    for folder in ("JPEGImages", "Annotations", "ImageSets"):
        (tmp_path / folder).mkdir()
    for name in "abcd":
        Image.new("RGB", (64, 48)).save(tmp_path / f"JPEGImages/{name}.jpg")
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    files = {
        "a": voc(thing("dog", 1, 2, 64, 48), thing("cat", 5, 5, 5, 5)),
        "b": voc(thing("cat", 3.5, 4, 13.5, 24, more=part + "<difficult>1</difficult>"), size=(60, 48)),
        "c": voc(thing("dog", -4, 0, 70, 20), thing("cat", 0, 0, 10, 10)),
        "d": voc(),
    }
    for name, text in files.items():
        (tmp_path / f"Annotations/{name}.xml").write_text(text)
    (tmp_path / "ImageSets/train.txt").write_text("c 1\na -1\n\n")
    (tmp_path / "ImageSets/val.txt").write_text("b\n")
    return tmp_path


def convert(source: Path, lists: bool = True, **options):
    sets = {split: source / f"ImageSets/{split}.txt" for split in ("train", "val")} if lists else None
    return convert_voc(source / "JPEGImages", source / "Annotations", sets, source / "coco", **options)


def test_splits_ids_and_corners(source):
    done = convert(source)
    train = json.loads((source / "coco/instances_train.json").read_text())
    assert [(i["id"], i["file_name"]) for i in train["images"]] == [(1, "a.jpg"), (3, "c.jpg")]
    assert [(c["id"], c["name"]) for c in train["categories"]] == [(1, "cat"), (2, "dog")]
    assert [(a["id"], a["image_id"], a["category_id"], a["bbox"], a["area"]) for a in train["annotations"]] == [
        (1, 1, 2, [1, 2, 63, 46], 2898),
        (2, 3, 2, [0, 0, 64, 20], 1280),
        (3, 3, 1, [0, 0, 10, 10], 100),
    ]
    val = json.loads((source / "coco/instances_val.json").read_text())
    (crowd,) = val["annotations"]
    assert (crowd["id"], crowd["image_id"], crowd["bbox"], crowd["iscrowd"]) == (4, 2, [3.5, 4, 10, 20], 1)
    assert done.splits["train"].boxes == {"cat": 1, "dog": 2}
    assert done.difficult == 1
    assert done.dropped == ("a: cat (5.0, 5.0, 5.0, 5.0) has no area",)
    assert done.clipped == ("c: dog (-4.0, 0.0, 70.0, 20.0) in 64 x 48",)
    assert done.resized == ("b: 64 x 48, its XML says 60 x 48",)
    assert done.left_out == ("d",)


def test_result_is_read_without_complaint(source):
    done = convert(source, lists=False)
    (split,) = done.splits.values()
    assert split.path == source / "coco/instances.json"
    data = read_coco(split.path, source / "JPEGImages")
    assert len(data.images) == split.images == 4
    assert done.left_out == ()


def test_given_categories_keep_their_order(source):
    convert(source, categories=["dog", "bird", "cat"])
    document = json.loads((source / "coco/instances_train.json").read_text())
    assert [c["name"] for c in document["categories"]] == ["dog", "bird", "cat"]
    assert [a["category_id"] for a in document["annotations"]] == [1, 1, 3]


def test_all_problems_are_reported_and_nothing_is_written(source):
    (source / "Annotations/a.xml").write_text("<annotation>")
    (source / "JPEGImages/b.jpg").unlink()
    (source / "Annotations/c.xml").write_text(voc(thing("dog", 1, 2, "x", 4), thing("cat", 1, 2, "inf", 4)))
    (source / "ImageSets/val.txt").write_text("nothing\nd\nd\n")
    with pytest.raises(DataError) as caught:
        convert(source, categories=["cat"])
    found = "\n".join(caught.value.problems)
    for said in ("a.xml: not XML", "b.xml: no image of this name", "c.xml: object 'dog'", "c.xml: object 'cat'",
                 "val.txt: 'nothing' has no usable XML", "val.txt: 'd' occurs 2 times"):  # fmt: skip
        assert said in found
    assert not (source / "coco").exists()


def test_unknown_category_and_missing_folder(source):
    with pytest.raises(DataError, match="category 'dog' is not among cat"):
        convert(source, categories=["cat"])
    with pytest.raises(DataError, match="no such folder"):
        convert_voc(source / "nowhere", source / "Annotations", None, source / "coco")


def test_the_layout_of_vocs_own_sets_needs_its_folder_alone(source):
    (source / "ImageSets/Main").mkdir()
    for name in ("train", "val"):
        (source / f"ImageSets/{name}.txt").rename(source / f"ImageSets/Main/{name}.txt")
    (source / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\n")
    (source / "ImageSets/Main/dog_train.txt").write_text("a 1\nc -1\n")
    done = convert_voc_folder(source, source / "coco")
    assert list(done.splits) == ["train", "val"]
    data = read_coco(source / "coco/instances_train.json", source)
    assert [r.path for r in data.images] == [source / "JPEGImages/a.jpg", source / "JPEGImages/c.jpg"]


def test_a_link_out_of_the_folders_is_refused(source, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "a.jpg"
    (source / "JPEGImages/a.jpg").rename(outside)
    (source / "JPEGImages/a.jpg").symlink_to(outside)
    with pytest.raises(DataError, match=r"a\.jpg: a link leaves"):
        convert(source)


BOMB = '<!DOCTYPE annotation [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_in_any_encoding(source, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + BOMB
    (source / "Annotations/a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"a\.xml: has a DOCTYPE"):
        convert(source, lists=False)
