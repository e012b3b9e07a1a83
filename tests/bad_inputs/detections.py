"""Files of detections in COCO's results form."""

import gzip
from typing import Any

from tests.bad_inputs.case import Case, Cases, Place, dumped, text

GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


def _load(name: str):
    def load(place: Place):
        from tood.evaluation import evaluate_files

        return evaluate_files(place.sound / "data/val.json", place.folder / name)

    return load


COMMAND = "evaluate --annotations {sound}/data/val.json --predictions {folder}/"


def form(what: str, content: str | bytes, says: str, name: str = "x.json", through_command: bool = False) -> Case:
    return Case(what, text(name, content), _load(name), f"{{folder}}/{name}", says, COMMAND + name if through_command else "")


def entry(what: str, says: str, through_command: bool = False, **values: Any) -> Case:
    command = f"{COMMAND}x.json" if through_command else ""
    return Case(what, dumped("x.json", [GOOD, GOOD | values]), _load("x.json"), "{folder}/x.json", says, command)


CASES: Cases = {
    "results-missing": Case("no file", lambda place: None, _load("x.json"), "{folder}/x.json", "cannot be read"),
    "results-empty-file": form("an empty file", "", "not JSON"),
    "results-cut": form("cut in the middle", '[{"image_id": 1, ', "not JSON", through_command=True),
    "results-object": form("an object in place of a list", '{"a": 1}', "expected a list of detections"),
    "results-numbers": form("a list of numbers", "[1, 2]", "is not an integer", through_command=True),
    "results-deep": form("a hundred thousand lists in each other", "[" * 100_000, "not JSON"),
    "results-packed-begun": form("a .gz of which two bytes came", b"\x1f\x8b", "cannot be unpacked by gzip", "x.json.gz"),
    "results-packed-cut": form("a .gz that ends too early", gzip.compress(b"[]", mtime=0)[:-6], "cannot be unpacked by gzip", "x.json.gz", True),
    "results-packed-damaged": form("a .gz with damaged data", gzip.compress(b"[1, 2, 3]", mtime=0)[:10] + b"\xff" * 30, "cannot be unpacked", "x.json.gz"),
    "results-packed-bomb": form("a .gz of a hundred thousand bytes that unfolds to a hundred million", b"", "unfolds to more than", "x.json.gz")._replace(
        make=lambda place: (place.folder / "x.json.gz").write_bytes(_bomb()),
    ),
    "results-image-text": entry("an image id that is a text", "image_id '1' is not an integer", image_id="1"),
    "results-image-unknown": entry("detections of an image that there is not", "99", image_id=99, through_command=True)._replace(
        where="{sound}/data/val.json"
    ),
    "results-category-unknown": entry("detections of a category that there is not", "90", category_id=90)._replace(
        where="{sound}/data/val.json"
    ),
    "results-category-missing": entry("no category", "category_id None is not an integer", category_id=None),
    "results-box-short": entry("a box of three numbers", "is not four finite numbers", bbox=[1, 2, 3]),
    "results-box-nan": entry("a box that is not a number", "is not four finite numbers", bbox=[1, 2, 3, float("nan")]),
    "results-box-corners": entry("a box of names", "is not four finite numbers", bbox={"x": 1}),
    "results-score-nan": entry("a score that is not a number", "score nan is not a finite number", score=float("nan"), through_command=True),
    "results-score-infinite": entry("an infinite score", "score inf is not a finite number", score=float("inf")),
    "results-score-text": entry("a score that is a text", "is not a finite number", score="high"),
    "results-score-missing": entry("no score", "score None is not a finite number", score=None),
}  # fmt: skip


def _bomb() -> bytes:
    """Members of a gzip file follow each other: one of 16 MiB of spaces, six times."""
    return gzip.compress(b" " * 2**24, mtime=0) * 6
