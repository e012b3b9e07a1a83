"""The demo set: complete, clear, deterministic, and safe to build twice at once."""

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tood.config import DataConfig
from tood.data import digits
from tood.data.coco import check_images, read_split
from tood.data.decoding import decode
from tood.errors import DataError


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> DataConfig:
    return DataConfig(source="digits", root=str(tmp_path_factory.mktemp("demo") / "digits"))


def test_is_a_clean_coco_data_set(config):
    for split, count in digits.IMAGES.items():
        data = read_split(config, split)
        assert len(data.images) == count
        assert data.names == tuple("0123456789")
        assert data.category_ids == tuple(range(1, 11))
        assert check_images(data) == []
        numbers = [len(record.boxes) for record in data.images]
        assert min(numbers) >= 1
        assert max(numbers) == digits.MOST
        labels = np.concatenate([record.labels for record in data.images])
        assert set(labels) == set(range(10))
        sides = np.concatenate([record.boxes[:, 3] - record.boxes[:, 1] for record in data.images])
        assert sides.min() >= 12
        assert sides.max() > 45


def test_boxes_hold_bright_ink_and_do_not_overlap(config):
    for record in read_split(config, "val").images:
        image = decode(record.path).float().amax(0)
        for i, (x1, y1, x2, y2) in enumerate(record.boxes.astype(int)):
            inside = image[y1:y2, x1:x2]
            assert inside.max() > 200
            assert inside.min() < 200
            for a in record.boxes[:i]:
                assert a[2] <= x1 or x2 <= a[0] or a[3] <= y1 or y2 <= a[1]


def test_builds_at_once_give_one_complete_set(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "IMAGES", {"train": 3, "val": 2})
    together = threading.Barrier(2)
    rename = os.rename

    def rename_together(*paths):
        together.wait(60)
        rename(*paths)

    monkeypatch.setattr(os, "rename", rename_together)
    with ThreadPoolExecutor(2) as pool:
        builds = [pool.submit(digits.digits_split, tmp_path / "digits", "val") for _ in range(2)]
    assert [build.result()[1] for build in builds] == [tmp_path / "digits/val"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]  # no temporary folder stays
    assert len(list((tmp_path / "digits/train").iterdir())) == 3


def test_a_build_that_another_overtakes_while_it_loads_takes_what_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "IMAGES", {"train": 3, "val": 2})
    load, loads = digits._load_sources, []

    def slowly():
        loads.append(1)
        if len(loads) == 1:
            digits.build_digits(tmp_path / "digits")  # the other process, from begin to end
        return load()

    monkeypatch.setattr(digits, "_load_sources", slowly)
    assert digits.digits_split(tmp_path / "digits", "val")[1] == tmp_path / "digits/val"
    assert len(loads) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_is_deterministic(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "IMAGES", {"train": 3, "val": 2})
    for name in "ab":
        digits.build_digits(tmp_path / name)
    for file in (path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_nothing_stays_where_building_fails(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(digits, "_write_split", full)
    with pytest.raises(DataError, match="No space left"):
        digits.build_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_train_and_val_share_no_scan_and_no_background(monkeypatch, tmp_path):
    used = []

    def remember(folder, split, scans, labels, backgrounds, draw):
        used.append((scans, backgrounds))

    monkeypatch.setattr(digits, "_write_split", remember)
    digits.build_digits(tmp_path / "digits")
    (train_scans, train_photos), (val_scans, val_photos) = used
    assert len(train_scans) + len(val_scans) == 1797
    assert train_photos[0].shape[1] + val_photos[0].shape[1] == 640
    assert not np.shares_memory(train_photos[0], val_photos[0])


def test_other_content_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="holds other files"):
        read_split(DataConfig(source="digits", root=str(tmp_path)), "train")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "digits.json").write_text(json.dumps(digits.RECIPE | {"version": 0}))
    with pytest.raises(DataError, match="another version"):
        read_split(DataConfig(source="digits", root=str(tmp_path)), "train")


def test_missing_scikit_learn_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"tood\[demo\]"):
        digits.build_digits(Path(tmp_path / "digits"))
