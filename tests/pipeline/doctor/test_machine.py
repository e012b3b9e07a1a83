"""Data behind an address are looked for there, not in a folder of that name."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import experiment_of
from pipeline.data.pack import pack
from pipeline.doctor import machine
from pipeline.doctor.finding import Patient
from pipeline.experiment_files import load_values
from tests.tiny import write_experiment
from tests.web import web_server
from tood.config import DataConfig


@pytest.fixture
def data(tmp_path) -> DataConfig:
    return experiment_of(load_values(str(write_experiment(tmp_path)))).data


def found(data: DataConfig, root: str):
    (finding,) = machine.data(Patient(replace(experiment_of({}), data=replace(data, root=root)), True, None))
    return finding


def test_annotations_are_looked_for_at_a_remote_root(data, tmp_path):
    served = tmp_path / "served"
    shutil.copytree(data.root, served)
    with web_server(served) as server:
        assert found(data, server.url) == machine.Finding("data", "ok", f"annotations of both splits at {server.url}")
        (served / data.val.annotations).unlink()
        problem = found(data, server.url)
    assert (problem.state, problem.says) == ("problem", f"missing: {server.url}/{data.val.annotations}")
    assert "set data.root" in problem.do


def test_a_packed_data_set_says_so_by_its_manifest(data, tmp_path):
    pack(Path(data.root), str(tmp_path / "packed"), say=lambda _: None)
    with web_server(tmp_path / "packed") as server:
        packed = found(data, server.url)
    assert (packed.state, packed.says) == ("ok", f"annotations of both splits at {server.url}, packed")
