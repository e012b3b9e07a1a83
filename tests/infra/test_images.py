"""The Dockerfiles: a linter's view, and what it cannot know."""

import re
import subprocess

import pytest

from infra.local.services import program
from tests.infra.manifests import INFRA, locked

FILES = sorted((INFRA / "images").glob("*.Dockerfile"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_linter_finds_nothing(file):
    done = subprocess.run([program("hadolint"), str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_images_are_pinned_and_nobody_is_root(file):
    text = file.read_text()
    for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    final = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final, re.MULTILINE)  # a number: Kubernetes checks it against runAsNonRoot
    installs = re.findall(r"pip install [^\n]*", text)
    assert installs
    for install in installs:
        assert "--constraint requirements.lock" in install or "--no-deps" in install
    assert not re.search(r"(?i)(password|secret|token)\s*=", text)


def test_the_cpu_images_torch_is_the_locked_one():
    text = (INFRA / "images" / "cpu.Dockerfile").read_text()
    for package in ("torch", "torchvision"):
        assert f"{package}=={locked(package)}+cpu" in text


def test_both_images_are_the_same_but_for_torch():
    cpu, gpu = ([*_steps(INFRA / "images" / f"{kind}.Dockerfile")] for kind in ("cpu", "gpu"))
    differ = [step for step in {*cpu} ^ {*gpu} if "torch" not in step and "NVIDIA" not in step and "TORCH" not in step]
    assert differ == []
    assert any("apt-get install" in step and " g++ " in step for step in cpu)  # what train.compile asks for


def test_an_image_is_given_nothing_but_what_it_is_built_from():
    seen = (INFRA.parent / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in seen if line.startswith("!")}
    copied = set()
    for file in FILES:
        for line in re.findall(r"^COPY (?!--from)(.+)$", file.read_text(), re.MULTILINE):
            copied |= set(line.split()[:-1])
    assert seen[1] == "*"
    assert copied == allowed
    assert all((INFRA.parent / name).exists() for name in copied)


def _steps(file):
    lines = (line for line in file.read_text().splitlines() if line and not line.startswith("#"))
    return "\n".join(lines).replace("\\\n", " ").splitlines()
