"""The offline demo data set: scanned handwritten digits on photographs, both bundled with scikit-learn, as COCO files.

    ROOT/digits.json                             the recipe that made the folder
    ROOT/annotations/instances_{train,val}.json  COCO annotations, categories "0".."9" with ids 1..10
    ROOT/{train,val}/NNN.jpg                     WIDTH x HEIGHT pixels, 1 to 5 digits each

Train and val share neither a scan nor a part of a photograph. A digit's box is the smallest around its visible ink. Each
digit is written in an ink of about its own hue, as on a colour-coded form: a detector that starts from random weights then
learns to tell them apart in minutes on a CPU, which by shape alone it does not.
"""

import colorsys
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFilter

from tood.errors import DataError
from tood.results import read_json

RECIPE = {"data": "digits on photographs", "version": 2}  # a change of anything below is a new version
IMAGES = {"train": 240, "val": 60}
HEIGHT, WIDTH = 128, 160
SIDES = (24, 56)  # px that a scan's side is enlarged to
MOST = 5  # digits an image
VAL_FROM_COLUMN = 370  # of the photographs (640 wide): val is cut from the right of it, train from the left
HUE_SPREAD = 0.02  # of an ink around its digit's hue; neighbours are 0.1 apart


def digits_split(root: Path, split: Literal["train", "val"]) -> tuple[Path, Path]:
    """(annotations file, folder of images) of a split; builds the data set in `root` if it is not there.

    Raises DataError where `root` holds something else, cannot be written, or scikit-learn is missing.
    """
    root = Path(root)
    recipe = root / "digits.json"
    if not recipe.is_file():
        build_digits(root)
    if read_json(recipe) != RECIPE:
        raise DataError(f"{root}: holds another version of the digits; delete the folder, or set data.root to a new one")
    return root / "annotations" / f"instances_{split}.json", root / split


def build_digits(root: Path) -> None:
    """Make the data set, about 6 MB, in a folder that is absent or empty, or holds it already. Deterministic; DataError as above.

    It appears under its name when complete: of several processes that build at once, the first to end wins.
    """
    root = Path(root).absolute()
    scans, labels, photographs = _load_sources()
    temporary = None
    try:
        if root.exists() and any(root.iterdir()):
            if (root / "digits.json").is_file():  # another process ended while this one loaded scikit-learn
                return
            raise DataError(f"{root}: holds other files; set data.root to a new folder for data.source=digits")
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}-"))
        temporary.chmod(0o755)
        for number, split in enumerate(IMAGES):
            of_split = (np.arange(len(labels)) % 5 == 0) == (split == "val")
            columns = slice(VAL_FROM_COLUMN, None) if split == "val" else slice(VAL_FROM_COLUMN)
            backgrounds = [photograph[:, columns] for photograph in photographs]
            draw = np.random.default_rng((RECIPE["version"], number))
            _write_split(temporary, split, scans[of_split], labels[of_split], backgrounds, draw)
        (temporary / "digits.json").write_text(json.dumps(RECIPE))
        os.rename(temporary, root)
    except OSError as error:
        if not (root / "digits.json").is_file():  # else another process was faster
            raise DataError(f"{root}: the digits cannot be written: {error.strerror or error}; set data.root") from None
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)  # gone already where it was renamed


def _load_sources() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Scans f32 [N,8,8] in 0..1 (1 = ink), digits [N], photographs u8 [427,640,3]."""
    try:
        from sklearn.datasets import load_digits, load_sample_image
    except ImportError:
        raise DataError("data.source=digits needs scikit-learn: install the extra, `pip install 'tood[demo]'`") from None
    digits = load_digits()
    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    return (digits.images / 16).astype(np.float32), digits.target, photographs


def _write_split(
    folder: Path,
    split: str,
    scans: np.ndarray,
    labels: np.ndarray,
    backgrounds: list[np.ndarray],
    draw: np.random.Generator,
) -> None:
    (folder / split).mkdir()
    images, annotations = [], []
    for image_id in range(1, IMAGES[split] + 1):
        picture = _cut(backgrounds[draw.integers(len(backgrounds))], draw)
        boxes: list[tuple[int, int, int, int]] = []
        for _ in range(draw.integers(1, MOST, endpoint=True)):
            scan = draw.integers(len(scans))
            box = _paint(picture, scans[scan], _ink(int(labels[scan]), draw), boxes, draw)
            if box is not None:
                boxes.append(box)
                annotations.append(_annotation(len(annotations) + 1, image_id, int(labels[scan]) + 1, box))
        name = f"{image_id:03}.jpg"
        Image.fromarray(picture.round().astype(np.uint8)).save(folder / split / name, quality=92)
        images.append({"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT})
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def _cut(photograph: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A random part of a photograph, darkened so that bright ink stands out: f32 [HEIGHT,WIDTH,3]."""
    y, x = (int(draw.integers(photograph.shape[i] - side, endpoint=True)) for i, side in enumerate((HEIGHT, WIDTH)))
    return photograph[y : y + HEIGHT, x : x + WIDTH].astype(np.float32) * 0.6


def _paint(
    picture: np.ndarray,
    scan: np.ndarray,
    colour: np.ndarray,
    boxes: list[tuple[int, int, int, int]],
    draw: np.random.Generator,
) -> tuple[int, int, int, int] | None:
    """Paint a scan at a random size and place, in place; its box (x1, y1, x2, y2), or None where no free place was found."""
    side = round(float(np.exp(draw.uniform(*np.log(SIDES)))))
    enlarged = np.asarray(Image.fromarray(scan).resize((side, side), Image.Resampling.BICUBIC))
    opacity = ((enlarged - 0.25) / 0.4).clip(0, 1)
    rows, columns = (np.flatnonzero((opacity > 0.5).any(axis=axis)) for axis in (1, 0))
    for _ in range(50):
        y, x = (int(draw.integers(length - side, endpoint=True)) for length in (HEIGHT, WIDTH))
        box = (x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1)
        if all(_apart(box, other) for other in boxes):
            break
    else:
        return None
    ink = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    ink[y : y + side, x : x + side] = opacity
    blurred = Image.fromarray((ink * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(side / 12))
    shadow = (np.asarray(blurred, dtype=np.float32) / 255 * 1.5).clip(0, 0.8)
    picture *= 1 - shadow[:, :, None]
    picture += (colour - picture) * ink[:, :, None]
    return box


def _ink(digit: int, draw: np.random.Generator) -> np.ndarray:
    """A bright colour of about the digit's own hue: f32 [3] in 0..255."""
    hue = digit / 10 + draw.uniform(-HUE_SPREAD, HUE_SPREAD)
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, draw.uniform(0.65, 0.9), 1.0), dtype=np.float32)


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int], gap: int = 2) -> bool:
    return a[2] + gap <= b[0] or b[2] + gap <= a[0] or a[3] + gap <= b[1] or b[3] + gap <= a[1]


def _annotation(number: int, image_id: int, category_id: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
    return {"id": number, "image_id": image_id, "category_id": category_id, **size, "iscrowd": 0}
