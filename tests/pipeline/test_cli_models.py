"""`tood models` from the command line: what it prints, returns and refuses."""

import json

import pytest

from pipeline.cli import main
from tests.pipeline.publisher import alias


@pytest.fixture
def tood(publisher, capsys):
    """Runs a verb on the registry; returns what it printed, or with `fails` its error."""

    def run(*words: str, fails: bool = False) -> str:
        settings = ["--set", f"tracking.uri={publisher.tracking_uri}", "--set", f"storage.url={publisher.store.url}"]
        code = main(["models", *words, *settings])
        printed = capsys.readouterr()
        assert code == (2 if fails else 0), printed.err
        return printed.err if fails else printed.out

    return run


def test_a_models_life_from_the_command_line(publisher, client, tood):
    name = publisher.name
    publisher(0, 0.5)
    publisher(1, 0.6)
    listed = next(line for line in tood("list").splitlines() if line.startswith(name))
    assert listed.split() == [name, "2", "2:", "val/AP", "0.6000", "1:", "val/AP", "0.5000"]
    (row,) = (model for model in json.loads(tood("list", "--json")) if model["name"] == name)
    assert (row["champion"]["version"], row["challenger"]["value"], row["before"]) == (2, 0.5, [1])
    shown = tood("show", name).splitlines()
    assert shown[0].split() == ["version", "alias", "figure", "on", "data", "epoch", "registered"]
    assert shown[2].split()[:5] == ["2", "champion", "val/AP", "0.6000", "dddddddddddd"]
    assert shown[-1] == "champions before: 1"
    card = tood("show", f"{name}@champion")
    assert "| val/AP | 0.6000 |" in card
    assert f"models:/{name}/2: champion" in card
    assert json.loads(tood("show", f"{name}/1", "--json"))["value"] == 0.5

    assert "not better than the champion's 0.6000" in tood("promote", f"{name}/1", fails=True)
    assert "say --why" in tood("promote", f"{name}/1", "--force", fails=True)
    assert "champion: forced: val/AP 0.5000 is not better" in tood("promote", f"{name}/1", "--force", "--why", "night images")
    assert tood("rollback", name) == f"champion of {name}: version 2 again, no longer 1\n"
    assert json.loads(tood("promote", f"{name}/1", "--alias", "challenger", "--json"))["reason"] == "it is the challenger"
    assert "retired" in tood("retire", f"{name}@challenger", "--why", "old")
    assert "retired" in tood("show", name).splitlines()[1]
    assert alias(client, name) == 2
    assert "no model 'nosuch'" in tood("show", "nosuch", fails=True)


def test_gc_lists_and_removes_only_when_told(publisher, tood):
    publisher(0, 0.5)
    prefix = publisher.upload(740, run="stranger")
    listed = tood("gc", "--older-than", "0m", "--unknown")
    assert "2 of 2" not in listed
    assert f"{prefix}  MLflow has no such run" in listed
    assert "would go; --delete removes it" in listed.splitlines()[-1]
    assert f"{prefix}/manifest.json" in publisher.store.list()
    outcome = json.loads(tood("gc", "--older-than", "0m", "--unknown", "--delete", "--json"))
    assert [item["prefix"] for item in outcome["items"] if item["goes"]] == [prefix]
    assert outcome["bytes"] > 5000
    assert f"{prefix}/manifest.json" not in publisher.store.list()
    assert "0 of 1" in tood("gc", "--older-than", "0m", "--unknown", "--delete")
    assert "is not an age" in tood("gc", "--older-than", "soon", fails=True)


def test_register_takes_a_folder_or_a_run(publisher, tiny_model, tood, tmp_path):
    name = f"{publisher.name}-x"
    assert tood("register", str(tiny_model), "--name", name) == f"registered: models:/{name}/1 (it is the first)\n"
    outcome = json.loads(tood("register", str(tiny_model.parent / "model1"), "--name", name, "--json"))
    assert outcome == {"name": name, "version": 2, "champion": True, "reason": outcome["reason"]}
    assert "neither a model folder here nor a run" in tood("register", "0" * 32, "--name", name, fails=True)
    assert "not a folder" in tood("register", str(tmp_path / "none"), "--name", name, fails=True)
    assert "model name 'my model'" in tood("register", str(tiny_model), "--name", "my model", fails=True)


def test_a_registry_that_is_new_has_no_models(tmp_path, capsys):
    assert main(["models", "list", "--set", f"output={tmp_path}"]) == 0
    assert capsys.readouterr().out == "no models are registered\n"
