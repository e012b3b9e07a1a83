"""Three lines to detections, where nothing but torch is at hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline.publisher import save_tiny_model
from tood import load
from tood.data.decoding import decode
from tood.errors import CheckpointError, DataError


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("trained"))


def test_images_of_any_kind_give_what_torchvision_users_expect(model):
    file = model.parent / "data/val/1.png"
    image = decode(file)
    detector = load(model, device="cpu")
    found = detector.predict([image, image.float() / 255, file, str(file)])
    assert [list(result) for result in found] == [["boxes", "scores", "labels"]] * 4
    for result in found:
        for key, value in found[0].items():
            assert torch.equal(result[key], value)
    first = found[0]
    assert first["boxes"].shape == (len(first["scores"]), 4)
    assert (first["scores"].diff() <= 0).all()
    assert {detector.names[label] for label in first["labels"].tolist()} <= {"red", "green", "blue"}
    sides = {"long_side": 64, "short_side": 64}  # of the recipe
    (same,) = detector.detector.predict([image], **sides)
    assert torch.equal(same["boxes"], first["boxes"])
    (few,) = detector([image], threshold=first["scores"][2].item())
    assert len(few["scores"]) >= 3
    assert (few["scores"] >= first["scores"][2]).all()
    assert not detector.detector.training


IMAGE = torch.zeros(3, 40, 50)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (IMAGE.long(), r"is of torch.int64; give image.to\(torch.uint8\)"),
        (IMAGE.int(), "is of torch.int32"),
        (IMAGE.bool(), "is of torch.bool"),
        (IMAGE + 255, r"has values from 255 to 255, but floats are read as \[0, 1\]; divide"),
        (IMAGE.half() - 1, "has values from -1 to -1"),
        (IMAGE + float("nan"), "has values from nan to nan"),
        (IMAGE.permute(1, 2, 0), r"shape \[40, 50, 3\], not RGB .*; give image.permute\(2, 0, 1\)"),
        (torch.zeros(4, 40, 50), r"shape \[4, 40, 50\], .*; give image\[:3\]"),
        (IMAGE[None], r"shape \[1, 3, 40, 50\], .* one by one"),
        (IMAGE[:1], r"shape \[1, 40, 50\], .*; give image.expand"),
        (IMAGE[0], r"shape \[40, 50\], .*; give image.expand"),
        (IMAGE[:, :0], r"shape \[3, 0, 50\], .* at least one pixel"),
        (IMAGE.numpy(), r"is a numpy.ndarray; give torch.from_numpy"),
        (None, r"is a NoneType; give a tensor"),
    ],
)
def test_what_is_no_image_is_refused_by_its_place_and_with_what_to_do(model, wrong, said):
    detector = load(model, device="cpu")
    fine = IMAGE.to(torch.uint8)
    for predict in (detector.predict, detector.detector.predict):
        with pytest.raises(DataError, match=f"^predict: image 1 (is of )?{said}"):
            predict([fine, wrong])


@pytest.mark.parametrize("alone", ["a.jpg", Path("a.jpg"), b"a", IMAGE, IMAGE[None], np.zeros((3, 40, 50), np.uint8), None])
def test_one_image_alone_is_refused_rather_than_taken_apart(model, alone):
    detector = load(model, device="cpu")
    for predict in (detector.predict, detector.detector.predict):
        with pytest.raises(DataError, match=r"expected a list of images, got a .* alone; give predict\(\[image\]\)"):
            predict(alone)


def test_no_images_give_no_detections_and_floats_may_overshoot_as_after_a_resize(model):
    detector = load(model, device="cpu")
    assert detector.predict([]) == detector.detector.predict([]) == []
    white = torch.full((3, 40, 50), 255, dtype=torch.uint8)
    sides = {"long_side": 64, "short_side": 64}
    found = detector.detector.predict([white, IMAGE + 1.3, (IMAGE + 1).half(), (IMAGE + 1).bfloat16()], **sides)
    for result in found[1:]:
        assert torch.equal(result["boxes"], found[0]["boxes"])


def test_the_library_alone_is_enough_and_naming_it_loads_no_torch(model):
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "mlflow", "boto3", "omegaconf", "pipeline"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from tood import load
assert "torch" not in sys.modules
print(len(load({str(model)!r}).predict([{str(model.parent / "data/val/1.png")!r}])))
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        load(tmp_path)
