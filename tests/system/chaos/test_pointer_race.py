import pytest

from pipeline.storage.folder import FolderStore
from tests.system.chaos import pointer_race


def test_no_update_is_lost_in_a_folder():
    assert pointer_race.main(["--count", "20", "--writers", "3", "--only", "folder"]) == 0


def test_a_store_that_ignores_conditions_is_told(tmp_path, monkeypatch):
    """Two writers that see the same state both win."""
    swap = FolderStore.swap_pointer
    monkeypatch.setattr(FolderStore, "swap_pointer", lambda self, key, data, etag: swap(self, key, data, self.read_pointer(key)[1]))
    store = FolderStore(tmp_path)
    _, etag = store.read_pointer(pointer_race.KEY)
    won = [store.swap_pointer(pointer_race.KEY, b'{"count": 1}', etag) for _ in range(2)]
    assert won == [True, True]
    assert pointer_race.kept([1, 1], 1) == 0
    assert pointer_race.kept([1, 2, 3], 3) == 3
    assert pointer_race.kept([1, 2], 2) == 2


@pytest.mark.system
def test_no_update_is_lost_in_a_bucket(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "")  # so that what the program sets ends with the test
    assert pointer_race.main(["--count", "20", "--writers", "3", "--only", "s3"]) == 0
