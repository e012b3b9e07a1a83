"""The pages under docs/ say what is so: their example is followed step by step, and their commands and keys exist."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import tood
from pipeline.cli import main
from tood.detectors import ModelConfig

PAGE = (Path(__file__).parents[1] / "docs/detectors.md").read_text()

FEW_STEPS = """
import torch
from tests_dense import OBJECTS, everywhere
from tood.config import build
from tood.detectors import ModelConfig, build_detector

torch.manual_seed(0)
values = {"channels": 8, "groups": 2, "layers": 1, "neck": {"channels": 8}, "backbone": {"depth": 18, "norm_eval": False}}
model = build(ModelConfig, {"detector": "nearest", **values}, "model")
assert model.objective.name == "nearest" and model.objective.topk == 9
detector = build_detector(model, 3).train()
steps = torch.optim.AdamW(detector.parameters(), lr=0.002)
image, history = torch.randn(2, 3, 64, 64), []
for _ in range(10):
    losses = detector.losses(image, torch.tensor([[64, 64], [64, 64]]), OBJECTS, 0)
    steps.zero_grad()
    sum(losses.values()).backward()
    steps.step()
    history.append(losses["loss_box"].item())
assert history[-1] < history[0], history
print(build(ModelConfig, {"detector": "nearest", "objective": {"topk": 0}}, "model"))
"""


def test_the_example_works_as_it_stands(tmp_path):
    package = tmp_path / "tood"
    shutil.copytree(Path(tood.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).parent / "tood/dense.py", tmp_path / "tests_dense.py")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (package / "objectives/nearest.py").write_text(code)
    table = package / "detectors.py"
    text = table.read_text()
    edits = re.findall(r"^\| `([^`]+)` \| (`.*`) \|$", PAGE.split("find | put in its place")[1], re.M)
    assert len(edits) == 3
    for find, put in [(find.replace("\\|", "|"), put) for find, put in edits]:
        assert text.count(find) == 1, find
        text = text.replace(find, "\n".join(re.findall(r"`(.*?)`", put)).replace("\\|", "|"))
    table.write_text(text)
    done = subprocess.run([sys.executable, "-c", FEW_STEPS], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "objective.topk" in done.stderr.splitlines()[-1], done.stderr  # all went well up to the option out of range


def test_keys_and_commands_of_the_page_exist(capsys):
    known = {field.name for field in fields(ModelConfig)}
    assert set(re.findall(r"`model\.(\w+)", PAGE)) <= known
    for path in re.findall(r"`(tood/\w+(?:\.py|/))`", PAGE):
        assert (Path(tood.__file__).parents[1] / path).exists() or path == "tood/objectives/nearest.py", path
    refused = re.search(r"\$ tood (.*)\n    (error: .*)", PAGE)
    assert main(refused[1].split()) == 2
    assert capsys.readouterr().err.strip() == refused[2]


@pytest.mark.parametrize("line", re.findall(r"^    tood train (tood_r50_fpn_1x.*?)(?:\s+#.*)?$", PAGE, re.M))
def test_its_runs_are_understood(line, capsys):
    assert main(["train", *line.split(), "--dry-run"]) == 0
    assert "hash" in capsys.readouterr().out
