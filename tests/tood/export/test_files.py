"""Exported detectors: the file runs like the detector, reloads, and says what it is of; what deviates is not kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tood.config import PredictConfig, build
from tood.data.decoding import decode
from tood.data.transforms import resize
from tood.detector import Detector
from tood.detectors import DETECTORS, ModelConfig, build_detector
from tood.errors import ConfigError
from tood.export import files as export_files
from tood.export.check import DeviationError, ExportError, compare, detect
from tood.export.files import FORMATS, export_detector, fit, open_program, sample_images
from tood.export.program import ExportedDetector, suppress
from tood.postprocess import class_wise_nms

SLIM = {"channels": 16, "groups": 4, "layers": 2, "backbone": {"depth": 18}, "neck": {"channels": 16}}
ABOUT = {"classes": ["red", "green", "blue"]}
PHOTOGRAPH = Path(__file__).parents[2] / "golden/preprocess/images/flower.jpg"


def detector(row: str = "tood", **predict) -> Detector:
    """A slim one whose head is random enough that scores and boxes are all different; it finds some sixty or more."""
    torch.manual_seed(0)
    config = build(ModelConfig, SLIM | {"detector": row})
    made = build_detector(config, 3, replace(PredictConfig(per_level=200), **predict)).eval()
    with torch.no_grad():
        for parameter in made.head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    if "score_threshold" not in predict:
        scores = detect(made, photograph(), threshold=0.0)["scores"]
        made.predict_config = replace(made.predict_config, score_threshold=0.999 * scores[:60][-1].item())
    return made


def photograph(height: int = 96, width: int = 160) -> torch.Tensor:
    return resize(decode(PHOTOGRAPH), (height, width)).contiguous()


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory) -> tuple[Path, export_files.Deviation]:
    pytest.importorskip("onnxruntime")
    file = tmp_path_factory.mktemp("onnx") / "tood.onnx"
    return file, export_detector(detector(), file, "onnx", [photograph()], with_nms=True, any_size=False, about=ABOUT)


def test_onnx_with_nms_equals_the_detector_on_a_photograph(onnx_file):
    _, found = onnx_file
    assert found.score <= 1e-4
    assert found.box <= 0.05
    assert found.compared > 20


def test_onnx_reloads_by_itself_and_says_what_it_is_of(onnx_file):
    import onnx
    import onnxruntime

    file, _ = onnx_file
    content = onnx.load(file)
    onnx.checker.check_model(content)
    assert json.loads({p.key: p.value for p in content.metadata_props}["tood"]) == ABOUT
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("image", [3, 96, 160])]
    boxes, scores, labels = session.run(["boxes", "scores", "labels"], {"image": photograph().numpy()})
    assert (boxes.shape, scores.shape, labels.shape) == ((100, 4), (100,), (100,))
    own = detect(detector(), photograph())
    assert int((scores > 0).sum()) == len(own["scores"])
    assert set(labels[scores > 0]) <= {0, 1, 2}
    assert (labels[scores == 0] == -1).all()


def test_a_program_of_torch_reloads_and_keeps_its_promise_where_nothing_is_found(tmp_path):
    file = tmp_path / "gfl.pt2"
    found = export_detector(detector("gfl", score_threshold=0.9999), file, "torch", [photograph()], with_nms=True, any_size=False)
    assert found.compared > 10  # by a second program, of a lower threshold
    assert [p.name for p in tmp_path.iterdir()] == ["gfl.pt2"]
    _, scores, labels = open_program(file, "torch")(photograph())
    assert not scores.any()
    assert (labels == -1).all()


def test_a_file_that_deviates_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(
        export_files, "open_program", lambda file, form: lambda image: ExportedDetector(detector("atss"), suppress=suppress)(image)
    )
    with pytest.raises(DeviationError, match="it was removed"):
        export_detector(detector(), tmp_path / "x.pt2", "torch", [photograph()], with_nms=False, any_size=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("row", DETECTORS)
@pytest.mark.parametrize("with_nms", [True, False], ids=["nms", "all"])
def test_the_program_of_every_row_does_what_the_row_does(row, with_nms):
    """Before it is traced: fixed numbers of candidates give what `tood.postprocess` gives."""
    own = detector(row, score_voting=row == "paa", clip=row != "tood")
    with torch.no_grad():
        found = compare(own, ExportedDetector(own, suppress=suppress if with_nms else None), [photograph()], with_nms=with_nms)
    assert found.score <= 1e-6
    assert found.box <= 1e-3
    assert found.compared > 20


def test_an_image_of_any_size_has_room_for_all_candidates():
    own = detector()
    program = ExportedDetector(own, suppress=suppress, any_size=True)
    with torch.no_grad():
        assert compare(own, program, [photograph(170, 200), photograph(200, 163)], with_nms=True).box <= 1e-3


def test_suppression_is_that_of_the_detector():
    torch.manual_seed(1)
    corner = 100 * torch.rand(60, 2)
    boxes, labels = torch.cat([corner, corner + 5 + 40 * torch.rand(60, 2)], 1), torch.randint(0, 3, (60,))
    scores = torch.rand(60)
    scores[40:] = 0.0  # places that are not filled
    keep = suppress(boxes, scores, labels, 0.5, 100, 3)
    expected = class_wise_nms(boxes[:40], scores[:40], labels[:40], 0.5)
    assert sorted(keep.nonzero().flatten().tolist()) == sorted(expected.tolist())
    assert not suppress(boxes, torch.zeros(60), labels, 0.5, 100, 3).any()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (37, 300)])
def test_an_image_is_fitted_into_a_frame_with_its_ratio(height, width):
    image = torch.full((3, 40, 60), 200, dtype=torch.uint8)
    framed = fit(image, height, width)
    assert framed.shape == (3, height, width)
    inside = framed[0] > 0
    rows, columns = int(inside.any(1).sum()), int(inside.any(0).sum())
    assert rows == height or columns == width
    assert columns / rows == pytest.approx(1.5, rel=0.05)


def test_there_are_images_without_any_given():
    images = sample_images()
    assert all(image.dtype == torch.uint8 and image.shape[0] == 3 and min(image.shape[1:]) >= 160 for image in images)
    assert torch.equal(export_files._squares(), export_files._squares())


def test_what_a_program_cannot_do_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"predict\.per_level: 20000"):
        ExportedDetector(detector(per_level=20_000), suppress=suppress)
    with pytest.raises(ExportError, match="--dynamic: images have sides from 160"):
        export_detector(detector(), tmp_path / "x.pt2", "torch", [photograph()], with_nms=True, any_size=True)


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"needs the package onnxscript; pip install 'tood\[export\]'"):
        export_detector(detector(), tmp_path / "x.onnx", "onnx", [photograph()], with_nms=True, any_size=False)


@pytest.mark.system
@pytest.mark.parametrize("row", DETECTORS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_row_is_written_and_runs(form, row, tmp_path):
    pytest.importorskip("onnxruntime")
    own = detector(row, score_voting=row == "paa", clip=row != "tood")
    found = export_detector(own, tmp_path / f"x{FORMATS[form]}", form, [photograph()], with_nms=True, any_size=False)
    assert found.compared > 20


@pytest.mark.system
@pytest.mark.parametrize("row", ["tood", "paa", "vfnet", "tscode_atss"])
@pytest.mark.parametrize("form", FORMATS)
def test_programs_for_all_sizes(form, row, tmp_path):
    pytest.importorskip("onnxruntime")
    images = [photograph(200, 260), photograph(264, 164), photograph(300, 420)]
    if row == "tscode_atss":  # half of its coarsest map has to have two cells
        images = [photograph(300, 420), photograph(421, 290), photograph(390, 520), photograph(640, 480)]
    found = export_detector(detector(row), tmp_path / f"x{FORMATS[form]}", form, images, with_nms=True, any_size=True)
    assert found.compared > 60
