"""Names and references of models, and the turn that whoever moves an alias takes."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import RegistryError
from pipeline.registry.access import all_models, check_name, parse, registry, turn, who


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a", None, None)),
        ("models:/a-b.c_1", ("a-b.c_1", None, None)),
        ("a@champion", ("a", "champion", None)),
        ("models:/a/12", ("a", None, "12")),
    ],
)
def test_a_reference_is_read_with_or_without_the_scheme(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "a b", "a@b/1", "a/x", "a/1/2", "runs:/x", "a@", "a/", "../a", "a\n"])
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(RegistryError, match="is not a model; write"):
        parse(text)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü", "-a", "a" * 81, "a.turn", "a\n"])
def test_names_that_no_model_may_have(name):
    with pytest.raises(RegistryError, match="model name"):
        check_name(name)
    assert check_name("a" * 80) == "a" * 80


def test_one_at_a_time_holds_the_turn_and_nothing_of_it_stays(tracking_uri, client):
    inside, most = [], []

    def work(_):
        with turn(client, "taken"):
            inside.append(1)
            most.append(len(inside))
            assert "taken.turn" not in [model.name for model in all_models(client)]
            time.sleep(0.02)
            inside.pop()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(8)))
    assert most == [1] * 8
    assert [m.name for m in client.search_registered_models("name = 'taken.turn'")] == []


def test_a_dead_holder_is_waited_for_no_longer_than_its_lease(client):
    with pytest.raises(RuntimeError), turn(client, "dead"):
        raise RuntimeError  # given up however the block ends
    client.create_registered_model("dead.turn", tags={"tood.turn": json.dumps({"owner": "x", "until": time.time() + 0.5})})
    with pytest.raises(RegistryError, match=r"its lock 'dead\.turn' has been held"), turn(client, "dead", patience=0.1):
        pass
    started = time.monotonic()
    with turn(client, "dead", patience=20):
        assert time.monotonic() - started < 15
    with turn(client, "dead", patience=5):
        pass


def test_a_turn_lost_to_another_is_not_given_up_in_its_name(client):
    with turn(client, "late", lease=-1):  # its time is up at once
        second = turn(client, "late", patience=10)
        second.__enter__()
    assert client.get_registered_model("late.turn")  # the first has ended, the second's turn goes on
    second.__exit__(None, None, None)
    assert client.search_registered_models("name = 'late.turn'") == []


def test_whoever_acts_is_mlflows_user_or_the_machines(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    assert who() == "ada"
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.setenv("LOGNAME", "grace")
    assert who() == "grace"


def test_a_registry_that_cannot_be_reached_is_named(tmp_path):
    (tmp_path / "file").write_text("not a database")
    with pytest.raises(RegistryError, match="cannot be opened"), registry(f"sqlite:///{tmp_path / 'file'}"):
        pass
