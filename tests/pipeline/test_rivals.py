"""A version and its champion measured on the same data, once."""

import pytest

from pipeline import rivals
from pipeline.experiment_files import load_values
from pipeline.registry.promotion import figures_of, promote
from pipeline.registry.registration import register_folder
from pipeline.rivals import measure
from pipeline.storage.folder import FolderStore
from tests.pipeline.publisher import alias, save_tiny_model


@pytest.fixture
def values(tiny_model) -> dict:
    return load_values(str(tiny_model.parent / "tiny.yaml"))


def test_models_of_different_data_are_measured_on_the_same(tracking_uri, client, tiny_model, values, tmp_path, monkeypatch):
    store = FolderStore(tmp_path / "store")
    register_folder(tracking_uri, store, tiny_model, "rivals")
    other = save_tiny_model(tmp_path / "other", seed=2, metrics={"val/AP": 0.9}, dataset="e" * 64)
    assert not register_folder(tracking_uri, store, other, "rivals").is_champion
    found = measure(tracking_uri, "rivals/2", values, tmp_path / "models")
    assert [one.version for one in found] == [1, 2]
    (data,) = {one.dataset for one in found}
    for one in found:
        assert figures_of(client.get_model_version("rivals", str(one.version)).tags)[data, "val/AP"] == one.value
    monkeypatch.setattr(rivals, "evaluate_model", None)
    assert measure(tracking_uri, "rivals/2", values, tmp_path / "models") == found  # kept
    better = found[1].value > found[0].value
    if better:
        assert promote(tracking_uri, "rivals/2", on=(data, "val/AP")).moved
    else:
        with pytest.raises(Exception, match="is not better than the champion's"):
            promote(tracking_uri, "rivals/2", on=(data, "val/AP"))
    assert alias(client, "rivals") == (2 if better else 1)
