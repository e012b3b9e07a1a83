"""COCO annotations: their form, what they say, and the names of files in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, Cases, Place, text

NAN = float("nan")


def _load(place: Place):
    from tood.data.coco import read_coco

    return read_coco(place.folder / "x.json", place.sound / "data/val")


def _load_from(images: Path, place: Place):
    from tood.data.coco import read_coco

    return read_coco(place.sound / "data/val.json", images)


COMMAND = "data check --annotations {folder}/x.json --images {sound}/data/val"


def form(what: str, content: str | bytes, says: str, command: str = "") -> Case:
    return Case(what, text("x.json", content), _load, "{folder}/x.json", says, command)


def edited(what: str, edit: Callable[[dict], Any], says: str, command: str = "") -> Case:
    """The sound val split with one fault."""

    def make(place: Place) -> None:
        content = json.loads((place.sound / "data/val.json").read_text())
        edit(content)
        (place.folder / "x.json").write_text(json.dumps(content))

    return Case(what, make, _load, "{folder}/x.json", says, command)


def image(what: str, says: str, command: str = "", **values: Any) -> Case:
    return edited(what, lambda content: content["images"][0].update(values), says, command)


def box(what: str, value: Any, says: str, command: str = "") -> Case:
    return edited(what, lambda content: content["annotations"][0].update(bbox=value), says, command)


def annotation(what: str, says: str, **values: Any) -> Case:
    return edited(what, lambda content: content["annotations"][0].update(values), says)


def without(part: str, key: str) -> Callable[[dict], Any]:
    return lambda content: content[part][0].pop(key)


def again(part: str) -> Callable[[dict], Any]:
    return lambda content: content[part].append(content[part][0])


CASES: Cases = {
    "coco-empty-file": form("an empty file", "", "not JSON"),
    "coco-cut": form("cut in the middle", '{"images": [{"id": 1, "fi', "not JSON", "evaluate --annotations {folder}/x.json --predictions {folder}/x.json"),
    "coco-binary": form("bytes that are no text", b"\x80\x81\xff" * 9, "not JSON"),
    "coco-list": form("a list of detections", "[]", "expected an object with lists"),
    "coco-number": form("a number", "7", "expected an object with lists"),
    "coco-deep": form("a hundred thousand lists in each other", "[" * 100_000, "not JSON"),
    "coco-huge-number": form("a number of ten thousand digits", f'{{"images": {"9" * 10_000}}}', "not JSON"),
    "coco-without-images": edited("no list of images", lambda content: content.pop("images"), "expected an object with lists"),
    "coco-without-annotations": edited("no list of annotations", lambda content: content.pop("annotations"), "expected an object with lists"),
    "coco-without-categories": edited("no list of categories", lambda content: content.pop("categories"), "expected an object with lists"),
    "coco-images-mapping": edited("images by id", lambda content: content.update(images={"1": {}}), "expected an object with lists"),
    "coco-image-is-text": edited("an image that is a text", lambda content: content["images"].append("4.png"), "expected an object with lists"),
    "coco-no-images": edited("an empty list of images", lambda content: (content["images"].clear(), content["annotations"].clear()), "the list of images is empty"),
    "coco-no-categories": edited("an empty list of categories", lambda content: (content["categories"].clear(), content["annotations"].clear()), "the list of categories is empty"),
    "image-id-text": image("an image id that is a text", "id '1' is not an integer", id="1"),
    "image-id-fraction": image("an image id that is a fraction", "id 1.5 is not an integer", id=1.5),
    "image-id-true": image("true for an image id", "id True is not an integer", id=True),
    "image-id-huge": image("an image id beyond 64 bits", "is not an integer", id=2**70),
    "image-id-missing": edited("no image id", without("images", "id"), "id None is not an integer"),
    "image-twice": edited("an image listed twice", again("images"), "occurs 2 times"),
    "image-width-text": image("a width that is a text", "width '64' is not a positive whole number", width="64"),
    "image-width-negative": image("a negative width", "width -64 is not a positive whole number", width=-64),
    "image-height-zero": image("no height", "height 0 is not a positive whole number", height=0),
    "image-height-nan": image("a height that is not a number", "height nan is not a positive whole number", height=NAN),
    "image-width-missing": edited("no width", without("images", "width"), "width None is not a positive whole number"),
    "image-name-missing": edited("no file name", without("images", "file_name"), "file_name None is not the name of a file"),
    "image-name-number": image("a number for a file name", "file_name 3 is not the name of a file", file_name=3),
    "image-name-empty": image("an empty file name", "file_name '' is not the name of a file", file_name=""),
    "image-name-nul": image("a NUL in a file name", "is not the name of a file", file_name="1\0.png"),
    "image-name-line-feed": image("a line feed in a file name", "is not the name of a file", file_name="1\n.png"),
    "image-name-escape": image("a terminal's escape code in a file name", "is not the name of a file", file_name="\x1b[2J1.png"),
    "image-name-surrogate": image("half a character in a file name", "is not the name of a file", file_name="\ud800/1.png"),
    "image-name-long": image("a file name of a hundred thousand letters", "no such file", file_name="n" * 100_000),
    "image-name-absolute": image("an absolute file name", "leaves", file_name="/etc/hostname", command=COMMAND),
    "image-name-parent": image("a file name that leaves the folder", "leaves", file_name="../train/1.png"),
    "image-name-inner-parent": image("a file name that leaves the folder on a detour", "leaves", file_name="a/../../train/1.png"),
    "image-missing": image("an image that is not there", "no such file in", file_name="99.png", command=COMMAND),
    "image-is-a-folder": image("a folder for an image", "no such file in", file_name="."),
    "annotation-id-missing": edited("no annotation id", without("annotations", "id"), "id None is not an integer"),
    "annotation-twice": edited("an annotation listed twice", again("annotations"), "occurs 2 times"),
    "annotation-image-unknown": annotation("an object on no image", "image_id 999 is not in the file", image_id=999),
    "annotation-image-list": annotation("a list for an image id", "image_id [1] is not in the file", image_id=[1]),
    "annotation-category-unknown": annotation("an object of no category", "category_id 90 is not in the file", category_id=90),
    "annotation-category-text": annotation("an object of a category's name", "category_id 'red' is not in the file", category_id="red"),
    "annotation-crowd": annotation("a crowd of two", "iscrowd 2 is not 0 or 1", iscrowd=2),
    "annotation-area-nan": annotation("an area that is not a number", "area nan is not a finite number", area=NAN),
    "annotation-area-text": annotation("an area that is a text", "is not a finite number", area="9"),
    "annotation-area-negative": annotation("a negative area", "area -4 is not a finite number from 0", area=-4),
    "box-missing": edited("no box", without("annotations", "bbox"), "has no bbox"),
    "box-three-numbers": box("a box of three numbers", [1, 2, 3], "is not four finite numbers"),
    "box-text": box("a box with a text in it", [1, 2, 3, "4"], "is not four finite numbers"),
    "box-nan": box("a box that is not a number", [1, NAN, 3, 4], "is not four finite numbers", COMMAND),
    "box-infinite": box("an infinite box", [1, 1, float("inf"), 4], "is not four finite numbers"),
    "box-huge-integer": box("a box beyond every fraction", [1, 1, 10**400, 4], "is not four finite numbers"),
    "box-mapping": box("a box with names", {"x": 1}, "is not four finite numbers"),
    "box-null": box("null for a box", None, "is not four finite numbers"),
    "box-no-width": box("a box without width", [1, 1, 0, 4], "has no area"),
    "box-negative-height": box("a box of negative height", [1, 9, 4, -4], "has no area", COMMAND),
    "box-outside": box("a box that leaves its image", [50, 50, 40, 4], "leaves its image"),
    "box-beside": box("a box beside its image", [64.5, 1, 0.4, 4], "has no area inside its image"),
    "category-twice": edited("a category listed twice", again("categories"), "occurs 2 times"),
    "category-name-missing": edited("no category name", without("categories", "name"), "name None is not text"),
    "category-name-number": edited("a number for a category name", lambda content: content["categories"][0].update(name=3), "name 3 is not text"),
    "category-name-twice": edited("two categories of one name", lambda content: content["categories"][0].update(name="blue"), "are named 'blue'"),
    "category-id-text": edited("a category id that is a text", lambda content: content["categories"][0].update(id="1"), "is not an integer"),
    "category-name-escape": edited("a terminal's escape code in a name", lambda content: content["categories"][0].update(name="\x1b[31m"), "is not text of printable"),
    "folder-missing": Case(
        "no folder of images",
        lambda place: None,
        lambda place: _load_from(place.folder / "none", place),
        "{folder}/none",
        "no such folder of images",
        "data check --annotations {sound}/data/val.json --images {folder}/none",
    ),
    "image-link-outside": Case(
        "a link that leads out of the folder of images",
        lambda place: (place.folder / "1.png").symlink_to("/etc/hostname"),
        lambda place: _load_from(place.folder, place),
        "1.png",
        "a symbolic link leaves",
        "data check --annotations {sound}/data/val.json --images {folder}",
    ),
}  # fmt: skip
