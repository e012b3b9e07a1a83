"""Who becomes champion and challenger, what the gate refuses, the way back, and what a race leaves."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import IntegrityError, RegistryError
from pipeline.registry.models import pull, show
from pipeline.registry.promotion import (
    HISTORY,
    KEPT,
    MEASURED,
    PROMOTED,
    RETIRED,
    ROLLED_BACK,
    figures_of,
    history_of,
    promote,
    retire,
    rollback,
)
from tests.pipeline.publisher import DATA, alias

OTHER = "e" * 64


def both(client, name):
    return alias(client, name), alias(client, name, "challenger")


def test_the_challenger_is_the_runner_up(publisher, client):
    for seed, (value, expected) in enumerate([(0.5, (1, None)), (0.4, (1, 2)), (0.3, (1, 2)), (0.45, (1, 4)), (0.6, (5, 1))]):
        publisher(seed, value)
        assert both(client, publisher.name) == expected
    publisher(5, 0.9, dataset=OTHER)  # no figure to compare
    assert both(client, publisher.name) == (5, 1)


def test_the_gate_refuses_with_the_figures_and_a_person_may_force_it(publisher, client):
    uri, name = publisher.tracking_uri, publisher.name
    publisher(0, 0.5)
    publisher(1, 0.4)
    with pytest.raises(RegistryError, match=rf"{name}/2 is not promoted: val/AP 0\.4000 is not better than the champion's 0\.5000"):
        promote(uri, f"{name}/2")
    assert alias(client, name) == 1
    decision = promote(uri, f"{name}@challenger", force=True, why="the other fails on night images")
    assert (decision.moved, both(client, name)) == (True, (2, 1))
    record = json.loads(client.get_model_version(name, "2").tags[PROMOTED])
    assert (record["over"], record["forced"], record["why"]) == (1, True, "the other fails on night images")
    assert record["by"]
    assert "0.4000 is not better" in record["evidence"]
    assert promote(uri, f"{name}/1").moved  # by its figures
    assert json.loads(client.get_model_version(name, "1").tags[PROMOTED])["forced"] is False
    assert promote(uri, f"{name}/1").reason == "it is the champion already"


def test_a_figure_that_the_model_itself_does_not_state_is_no_evidence(publisher, client):
    uri, name = publisher.tracking_uri, publisher.name
    publisher(0, 0.5)
    publisher(1, 0.4)
    client.set_model_version_tag(name, "2", "value", "0.9")
    with pytest.raises(RegistryError, match=r"its tag says val/AP 0\.9, its manifest 0\.4"):
        promote(uri, f"{name}/2")
    client.set_model_version_tag(name, "2", "metric", "val/AP75")
    with pytest.raises(RegistryError, match="its manifest has no val/AP75"):
        promote(uri, f"{name}/2")
    client.set_model_version_tag(name, "2", "dataset", OTHER)
    with pytest.raises(RegistryError, match="its tag says it was measured on eeee"):
        promote(uri, f"{name}/2")
    assert alias(client, name) == 1


def test_damaged_bytes_are_not_promoted_even_by_force(publisher, client):
    publisher(0, 0.5)
    publisher(1, 0.6)
    (publisher.store.root / publisher.upload(0) / "model" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        promote(publisher.tracking_uri, f"{publisher.name}/1", force=True, why="x")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        rollback(publisher.tracking_uri, publisher.name)
    assert alias(client, publisher.name) == 2


def test_a_later_measurement_on_the_same_data_decides(publisher, client):
    uri, name = publisher.tracking_uri, publisher.name
    publisher(0, 0.5)
    publisher(1, 0.3, dataset=OTHER)
    with pytest.raises(RegistryError, match=r"measured on other data \(dddddddddddd, not eeeeeeeeeeee\).*--measure"):
        promote(uri, f"{name}/2")
    client.set_model_version_tag(name, "1", f"{MEASURED}e", json.dumps({"dataset": OTHER, "metric": "val/AP", "value": 0.2}))
    assert figures_of(client.get_model_version(name, "1").tags) == {(DATA, "val/AP"): 0.5, (OTHER, "val/AP"): 0.2}
    assert promote(uri, f"{name}/2", on=(OTHER, "val/AP")).reason == "val/AP 0.3000 is better than the champion's 0.2000"
    assert both(client, name) == (2, 1)


def test_rollback_walks_back_and_what_was_rolled_back_stays_so(publisher, client, tmp_path):
    uri, name = publisher.tracking_uri, publisher.name
    for seed, value in enumerate((0.3, 0.4, 0.5)):
        publisher(seed, value)
    assert show(name, uri)["before"] == [1, 2]
    assert rollback(uri, name, why="night images") == (3, 2)
    assert both(client, name) == (2, None)
    assert json.loads(client.get_model_version(name, "3").tags[ROLLED_BACK])["why"] == "night images"
    pulled = pull(name, uri, tmp_path / "pulled") / "model.safetensors"
    assert pulled.read_bytes() == (tmp_path / "checkpoint1/model/model.safetensors").read_bytes()
    again = publisher(2, 0.5)  # a resumed run publishes what it published before
    assert (again.is_champion, again.decision.reason[:18]) == (False, "it was rolled back")
    assert rollback(uri, name) == (2, 1)
    with pytest.raises(RegistryError, match="no champion before version 1"):
        rollback(uri, name)
    assert promote(uri, f"{name}/3").moved  # a person says so, and its figure is the best
    assert ROLLED_BACK not in client.get_model_version(name, "3").tags
    assert rollback(uri, name) == (3, 1)


def test_rollback_goes_past_versions_that_are_gone_or_retired(publisher, client):
    uri, name = publisher.tracking_uri, publisher.name
    for seed, value in enumerate((0.2, 0.3, 0.4, 0.5)):
        publisher(seed, value)
    client.delete_model_version(name, "3")
    retire(uri, f"{name}/2", why="leaked data")
    assert rollback(uri, name) == (4, 1)


def test_a_retired_version_has_no_alias_and_comes_back_by_force_only(publisher, client):
    uri, name = publisher.tracking_uri, publisher.name
    publisher(0, 0.5)
    publisher(1, 0.4)
    with pytest.raises(RegistryError, match=f"{name}/1 is the champion; promote another"):
        retire(uri, f"{name}/1")
    retire(uri, f"{name}@challenger", why="not needed")
    assert both(client, name) == (1, None)
    assert [v["state"] for v in show(name, uri)["versions"]] == ["", "retired"]
    assert publisher(1, 0.4).decision.reason.startswith("it was retired")
    with pytest.raises(RegistryError, match=rf"{name}/2 was retired \(.*not needed\); --force"):
        promote(uri, f"{name}/2")
    promote(uri, f"{name}/2", force=True, why="needed after all")
    assert alias(client, name) == 2
    assert RETIRED not in client.get_model_version(name, "2").tags


def test_a_challenger_may_be_named_by_hand(publisher, client):
    uri, name = publisher.tracking_uri, publisher.name
    publisher(0, 0.5)
    publisher(1, 0.9, dataset=OTHER)
    assert promote(uri, f"{name}/2", alias="challenger") == (False, "it is the challenger")
    assert both(client, name) == (1, 2)
    with pytest.raises(RegistryError, match="is the champion; a challenger is another version"):
        promote(uri, f"{name}/1", alias="challenger")


def test_what_cannot_be_meant_is_named(publisher):
    uri, name = publisher.tracking_uri, publisher.name
    publisher(0)
    for call, says in (
        (lambda: promote(uri, name), f"say which version, such as {name}/3"),
        (lambda: retire(uri, name), "say which version"),
        (lambda: rollback(uri, f"{name}/1"), "a model's name alone is rolled back"),
        (lambda: rollback(uri, "nosuch"), "no model 'nosuch'"),
        (lambda: promote(uri, f"{name}/9"), "no version 9"),
        (lambda: rollback(uri, name), "no champion before version 1"),
    ):
        with pytest.raises(RegistryError, match=says):
            call()


def test_the_history_is_bounded_and_bears_what_a_person_wrote(publisher, client):
    publisher(0, 0.5)
    client.set_registered_model_tag(publisher.name, HISTORY, json.dumps(list(range(1000, 1000 + KEPT))))
    publisher(1, 0.6)
    kept = history_of(client.get_registered_model(publisher.name).tags)
    assert (len(kept), kept[0], kept[-1]) == (KEPT, 1001, 1)
    assert history_of({HISTORY: "by hand"}) == []
    assert figures_of({"dataset": DATA, "metric": "m", "value": "nan", f"{MEASURED}x": "by hand"}) == {}


def test_promotions_that_race_leave_one_champion_that_exists_and_all_before_it(publisher, client):
    uri, name = publisher.tracking_uri, publisher.name
    for seed in range(5):
        publisher(seed, 0.5 - seed / 100)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda version: promote(uri, f"{name}/{version}", force=True, why="race"), (2, 3, 4, 5)))
    champion, challenger = both(client, name)
    assert champion in (2, 3, 4, 5)
    before = history_of(client.get_registered_model(name).tags)
    assert sorted([*before, champion]) == [1, 2, 3, 4, 5]
    assert before[0] == 1
    assert challenger == before[-1]


@pytest.mark.short_run
def test_processes_that_promote_at_once_leave_the_best(publisher, client):
    uri, name = publisher.tracking_uri, publisher.name
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        publisher(seed, value)
    client.set_registered_model_alias(name, "champion", "1")
    code = "import sys; from pipeline.registry.promotion import promote; promote(*sys.argv[1:])"
    command, root = [sys.executable, "-c", code, uri], str(Path(__file__).parents[3])
    racers = [subprocess.Popen([*command, f"{name}/{v}"], cwd=root, stderr=subprocess.PIPE, text=True) for v in (2, 3)]
    ends = [(racer.communicate(timeout=500)[1], racer.returncode) for racer in racers]
    assert alias(client, name) == 3
    assert ends[1][1] == 0
    assert ends[0][1] == 0 or "is not better than the champion's 0.7000" in ends[0][0]
    assert [m.name for m in client.search_registered_models(f"name LIKE '{name}%'")] == [name]  # no lock is left
