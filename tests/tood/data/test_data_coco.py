"""Reading COCO files: what is right, what is mapped, and that everything wrong is found at once."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tood.config import DataConfig, SplitConfig
from tood.data.coco import check_images, read_coco, read_split
from tood.errors import DataError


def annotation(number: int, image: int, category: int, box: list, **more) -> dict:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0} | more


def document() -> dict:
    """Two images; categories 7 and 90; a crowd; image 9 is empty."""
    return {
        "images": [
            {"id": 9, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "sub/a.png", "width": 64, "height": 48},
        ],
        "annotations": [
            annotation(5, 3, 90, [10.0, 5.0, 20.0, 10.0], area=150.0),
            annotation(2, 3, 7, [0, 0, 4, 4]),
            annotation(8, 3, 7, [0, 0, 64, 48], iscrowd=1),
        ],
        "categories": [{"id": 90, "name": "brush"}, {"id": 7, "name": "train"}],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(images / "b.png")
    Image.new("RGB", (64, 48)).save(images / "sub/a.png")
    return images


def read(folder: Path, content: object, **options):
    path = folder.parent / "annotations.json"
    path.write_text(json.dumps(content))
    return read_coco(path, folder, **options)


def problems(folder: Path, content: object, **options) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(folder, content, **options)
    return caught.value.problems


def test_reads_images_sorted_with_labels_from_zero(folder):
    data = read(folder, document())
    assert [r.image_id for r in data.images] == [3, 9]
    assert data.names == ("train", "brush")
    assert data.category_ids == (7, 90)
    first, empty = data.images
    assert first.path == folder / "sub/a.png"
    assert (first.height, first.width) == (48, 64)
    np.testing.assert_array_equal(first.boxes, [[0, 0, 4, 4], [10, 5, 30, 15], [0, 0, 64, 48]])
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [0, 1, 0]
    assert first.crowd.tolist() == [False, False, True]
    assert empty.boxes.shape == (0, 4)
    assert empty.labels.dtype == np.int64
    assert check_images(data) == []


def test_areas_are_those_annotated_or_else_the_boxes(folder):
    data = read(folder, document())
    assert [r.areas.tolist() for r in data.images] == [[16.0, 150.0, 64.0 * 48], []]


def test_fingerprint_follows_content_not_order_or_place(folder, tmp_path):
    data = document()
    original = read(folder, data).fingerprint
    for part in data.values():
        part.reverse()
    assert read(folder, data).fingerprint == original
    for entry in data["images"]:
        entry["license"] = 3
    assert read(folder, data).fingerprint == original
    assert len(original) == 64

    def changed(part: str, index: int, **values) -> str:
        other = document()
        other[part][index] |= values
        return read(folder, other, check_files=False).fingerprint

    different = {
        changed("annotations", 0, bbox=[10.0, 5.0, 20.0, 10.5]),
        changed("annotations", 0, area=151.0),
        changed("annotations", 0, category_id=7),
        changed("annotations", 0, image_id=9, bbox=[1, 1, 2, 2]),
        changed("annotations", 2, iscrowd=0),
        changed("images", 0, width=41),
        changed("images", 0, id=10),
        changed("categories", 0, name="toothbrush"),
    }
    assert original not in different
    assert len(different) == 8


def test_boxes_that_stick_out_by_rounding_are_clipped(folder):
    data = document()
    data["annotations"] = [annotation(1, 9, 7, [-0.6, 3, 41.2, 27.9]), annotation(2, 9, 7, [30, 20, 10.9, 5])]
    boxes = read(folder, data).images[1].boxes
    np.testing.assert_allclose(boxes, [[0, 3, 40, 30], [30, 20, 40, 25]], rtol=1e-6)


BAD_BOXES = [
    [1, 1, 0, 5],
    [1, 1, 5, -5],
    [math.nan, 1, 5, 5],
    [1, 1, math.inf, 5],
    [-1.5, 1, 5, 5],
    [1, 1, 39, 30.5],
    [40.5, 1, 0.4, 5],
    [1, 1, 5],
    [1, 1, 5, "5"],
    [1, 1, 5, True],
    [1, 1, 5, 10**400],
    None,
    {"x": 1},
]


def test_every_bad_box_is_reported(folder):
    data = document()
    data["annotations"] += [annotation(100 + i, 9, 7, box) for i, box in enumerate(BAD_BOXES)]
    with pytest.raises(DataError, match=f"annotations.json: {len(BAD_BOXES)} problems") as caught:
        read(folder, data)
    found = caught.value.problems
    assert len(found) == len(BAD_BOXES)
    for i, line in enumerate(found):
        assert line.startswith(f"image 9 (b.png), annotation {100 + i}: bbox ")
    assert "data.invalid_boxes=drop" in str(caught.value)


def test_drop_leaves_out_bad_boxes_alone(folder):
    data = document()
    clean = read(folder, data)
    data["annotations"] += [annotation(100 + i, 9, 7, box) for i, box in enumerate(BAD_BOXES)]
    dropped = read(folder, data, invalid_boxes="drop")
    assert len(dropped.dropped) == len(BAD_BOXES)
    assert dropped.dropped_ids == {100 + i for i in range(len(BAD_BOXES))}
    assert not clean.dropped_ids
    assert dropped.fingerprint == clean.fingerprint
    data["annotations"][0]["image_id"] = 1
    assert len(problems(folder, data, invalid_boxes="drop")) == 1 + len(BAD_BOXES)


@pytest.mark.parametrize(
    ("part", "index", "values", "said"),
    [
        ("images", 0, {"id": 3}, "image id 3 occurs 2 times"),
        ("images", 0, {"id": "9"}, "image at position 0: id '9' is not an integer"),
        ("images", 0, {"width": 0}, "image 9 (b.png): width 0 is not"),
        ("images", 0, {"height": 30.0}, "image 9 (b.png): height 30.0 is not"),
        ("images", 0, {"file_name": None}, "file_name None"),
        ("images", 0, {"file_name": "nowhere.png"}, "nowhere.png: no such file"),
        ("images", 0, {"file_name": "sub"}, "sub: no such file"),
        ("images", 0, {"file_name": "/etc/passwd"}, "/etc/passwd: file_name leaves"),
        ("images", 0, {"file_name": "sub/../../annotations.json"}, "annotations.json: file_name leaves"),
        ("images", 0, {"file_name": "b\0.png"}, "is not the name of a file"),
        ("annotations", 0, {"id": 2}, "annotation id 2 occurs 2 times"),
        ("annotations", 0, {"id": True}, "annotation at position 0: id True is not an integer"),
        ("annotations", 0, {"image_id": 4}, "image 4, annotation 5: image_id 4 is not in the file"),
        ("annotations", 0, {"image_id": [3]}, "image [3], annotation 5: image_id [3] is not in the file"),
        ("annotations", 0, {"category_id": 1}, "image 3 (sub/a.png), annotation 5: category_id 1 is not in the file"),
        ("annotations", 0, {"iscrowd": 2}, "annotation 5: iscrowd 2"),
        ("annotations", 0, {"area": "x"}, "annotation 5: area 'x'"),
        ("categories", 0, {"id": None}, "category at position 0: id None"),
        ("categories", 0, {"name": "train"}, "2 categories are named 'train'"),
        ("categories", 0, {"name": 3}, "category 90: name 3 is not text"),
    ],
)
def test_structural_problems(folder, part, index, values, said):
    data = document()
    data[part][index] |= values
    assert any(said in line for line in problems(folder, data, invalid_boxes="drop")), said


def test_missing_bbox_is_structural(folder):
    data = document()
    del data["annotations"][0]["bbox"]
    assert problems(folder, data, invalid_boxes="drop") == ["image 3 (sub/a.png), annotation 5: has no bbox"]


def test_all_problems_at_once_and_a_short_message(folder):
    data = document()
    data["images"] += [{"id": 100 + i, "file_name": f"{i}.jpg", "width": 5, "height": 5} for i in range(30)]
    data["annotations"][0]["category_id"] = 4
    data["annotations"][1]["bbox"] = [0, 0, 0, 0]
    with pytest.raises(DataError) as caught:
        read(folder, data)
    assert len(caught.value.problems) == 32
    assert len(str(caught.value).splitlines()) == 23
    assert "32 problems" in str(caught.value)
    assert "12 more: `tood data check`" in str(caught.value)


def test_symbolic_links_may_not_leave_the_folder(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (40, 30)).save(outside / "c.png")
    (folder / "link.png").symlink_to(outside / "c.png")
    (folder / "linked").symlink_to(outside)
    (folder / "fine.png").symlink_to(folder / "b.png")
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    for name, said in [("link.png", "symbolic link"), ("linked/c.png", "symbolic link"), ("dangling.png", "no such file")]:
        data = document()
        data["images"][0]["file_name"] = name
        (line,) = problems(folder, data)
        assert line.startswith(name)
        assert said in line
    data["images"][0]["file_name"] = "fine.png"
    read(folder, data)
    whole = tmp_path / "elsewhere"
    whole.symlink_to(folder)
    assert read_coco(tmp_path / "annotations.json", whole).images


@pytest.mark.parametrize(
    "content", [[], {}, {"images": [], "annotations": []}, {"images": [1], "annotations": [], "categories": []}]
)
def test_other_shapes_of_json(folder, content):
    assert "not a COCO file" in problems(folder, content)[0]


def test_empty_lists_missing_folder_and_broken_json(folder, tmp_path):
    found = problems(folder, {"images": [], "annotations": [], "categories": []})
    assert found == ["the list of categories is empty", "the list of images is empty"]
    assert problems(tmp_path / "nowhere", document()) == [f"{tmp_path / 'nowhere'}: no such folder of images"]
    (tmp_path / "annotations.json").write_text('{"images": [')
    with pytest.raises(DataError, match="not JSON"):
        read_coco(tmp_path / "annotations.json", folder)


def test_read_split_resolves_paths_under_root(folder, tmp_path):
    read(folder, document())
    split = SplitConfig("annotations.json", "images")
    config = DataConfig(root=str(tmp_path), train=split, val=SplitConfig(str(tmp_path / "annotations.json"), str(folder)))
    assert read_split(config, "train").fingerprint == read_split(config, "val").fingerprint
    with pytest.raises(DataError, match=r"data\.val\.annotations"):
        read_split(DataConfig(root=str(tmp_path)), "val")


def test_check_images_decodes_everything(folder):
    data = read(folder, document())
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:40])
    Image.new("RGB", (63, 48)).save(folder / "sub/a.png")
    wrong_size, broken = check_images(data)
    assert "63 pixels wide and 48 high" in wrong_size
    assert str(folder / "b.png") in broken
