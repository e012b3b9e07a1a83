"""Three lines to detections, where nothing but torch is at hand."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.pipeline.publisher import save_tiny_model
from tood import load
from tood.data.decoding import decode
from tood.errors import CheckpointError


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
