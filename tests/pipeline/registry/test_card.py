"""A version's card: what the manifest, the run and the publisher say, within the room that MLflow has."""

import json

import pytest

from pipeline.registry.card import ROOM, Data, Provenance, about, card
from pipeline.storage.checkpoints import Manifest
from pipeline.tracking.runs import Run
from tests.pipeline.publisher import DATA

TAGS = {"metric": "val/AP", "value": "0.25", "dataset": DATA, "epoch": "3", "step": "12", "config_hash": "c0ffee"}


def manifest(names=("a", "b"), **metrics: float) -> Manifest:
    metrics = {f"val/{key}": value for key, value in metrics.items()} or {"val/AP": 0.25, "val/AP50": 0.5}
    info = {"names": list(names), "metrics": metrics, "config": {"train": {"epochs": 12}, "model": {"detector": "tood"}}}
    return Manifest("5" * 64, {}, {"info": info}, b"")


def test_a_card_says_what_it_is_and_how_to_get_it():
    data = (Data("training", "train", "f" * 64, 205), Data("validation", "val", DATA, None))
    text = card("cells", TAGS, manifest(), Provenance("abcdef0123456", True, data), "CC-BY-4.0")
    for part in (
        "| val/AP | 0.2500 |",
        "| licence | CC-BY-4.0 |",
        "| code | commit `abcdef012345` with changes |",
        "| 2 classes | a, b |",
        "| training | train | 205 | `ffffffffffff` |",
        "| validation | val | - | `dddddddddddd` |",
        "| AP | AP50 |",
        "tood pull models:/cells@champion --output model",
        'detector = load("model")',
        "detector.predict([image])",
        "detector tood, epochs 12",
        "5" * 64,
    ):
        assert part in text
    plain = card("cells", TAGS, manifest(), Provenance())
    assert "| licence | not stated |" in plain
    assert "commit not known" in plain
    assert "rollback cells" in about("cells")


def test_what_was_sampled_stands_in_place_of_the_configuration():
    text = card("cells", TAGS | {"hp.alpha": "1.5"}, manifest(), Provenance())
    assert "**Settings**: alpha 1.5" in text
    assert "epochs 12" not in text


def test_classes_are_shown_from_the_epoch_whose_mean_is_the_models():
    names = [f"class{i:02}" for i in range(20)]
    figures = {name: {"AP": i / 100, "AP50": 0.5} for i, name in enumerate(names)} | {"absent": {"AP": -1, "AP50": -1}}
    other = {name: {"AP": 0.9} for name in names}
    text = card("cells", TAGS, manifest(names, AP=0.095), Provenance(per_class=(other, figures)))
    rows = [line for line in text.splitlines() if line.startswith("| class")]
    assert [row.split(" | ")[0] for row in rows[1:]] == [f"| class{i:02}" for i in (19, 18, 17, 16, 15, 4, 3, 2, 1, 0)]
    assert "| class |" not in card("cells", TAGS, manifest(names, AP=0.2), Provenance(per_class=(other, figures)))


def test_a_card_has_room_and_no_secrets(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret-value")
    names = [f"a long name of a class {i}" for i in range(1000)]
    tags = TAGS | {f"hp.{i}": "long " * 20 for i in range(100)}
    text = card("cells", tags, manifest(names), Provenance(), "of canary-secret-value")
    assert len(text) <= ROOM
    assert "tood pull" in text
    assert "canary" not in text


@pytest.mark.parametrize("per_class", [{"a": {"AP": 0.25}}, None])
def test_a_run_says_what_it_was_made_from(client, tracking_uri, run_id, per_class):
    run_id = client.create_run(client.get_run(run_id).info.experiment_id).info.run_id
    run = Run.attach(tracking_uri, run_id)
    run.tags({"mlflow.source.git.commit": "abc", "git.dirty": "no"})
    run.dataset("instances_train", "f" * 64, "training", 205)
    if per_class:
        run.text(json.dumps(per_class), "best/per_class.json")
    found = Provenance.of_run(client, run_id)
    assert found == Provenance(
        "abc", False, (Data("training", "instances_train", "f" * 64, 205),), (per_class,) if per_class else ()
    )
