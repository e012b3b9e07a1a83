"""What every store promises, asked of a folder and of a real S3 server; and what each does when it cannot."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import IntegrityError, MissingObjectError, StorageError
from pipeline.storage.folder import FolderStore
from pipeline.storage.opening import check, open_store
from pipeline.storage.store import Store


@pytest.fixture
def store(place, request) -> Store:
    return open_store(f"{place}/{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}")


def test_check_passes_and_leaves_nothing(store):
    check(store)
    assert store.list() == []


def test_checks_without_end_leave_no_more_than_one(tmp_path):
    store = FolderStore(tmp_path)
    for _ in range(40):
        check(store)
    assert list((tmp_path / "check").iterdir()) == []
    for number in range(2000):
        with store._lock(str(number)):
            pass
    assert len(list((tmp_path / ".locks").iterdir())) <= 256


def test_an_object_is_created_once(store):
    store.put_bytes("a/b.json", b"first")
    store.put_bytes("a/b.json", b"first")  # a retry
    with pytest.raises(IntegrityError, match=hashlib.sha256(b"second").hexdigest()):
        store.put_bytes("a/b.json", b"second")
    assert store.get_bytes("a/b.json") == b"first"


def test_a_large_file_is_created_once(store, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(40 << 20))  # in S3 more than one part
    store.put_file("weights", path)
    store.put_file("weights", path)
    assert b"".join(store.chunks("weights")) == path.read_bytes()
    with path.open("r+b") as file:
        file.write(b"other")
    with pytest.raises(IntegrityError, match="exists with other content"):
        store.put_file("weights", path)


def test_of_racing_creators_one_wins(store):
    contents = [bytes([i]) * 1000 for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(lambda content: store.create("raced", content), contents))
    assert created.count(True) == 1
    assert store.get_bytes("raced") == contents[created.index(True)]


def test_a_pointer_is_swapped_only_by_its_etag(store):
    assert store.read_pointer("p") == (None, None)
    assert not store.swap_pointer("p", b"x", "nothing-has-this-etag")
    assert store.swap_pointer("p", b"1", None)
    assert not store.swap_pointer("p", b"x", None)
    data, etag = store.read_pointer("p")
    assert data == b"1"
    assert store.swap_pointer("p", b"2", etag)
    assert not store.swap_pointer("p", b"x", etag)
    assert store.read_pointer("p")[0] == b"2"


def test_racing_increments_lose_none(store):
    def add_twenty(_) -> int:
        refused = 0
        for _ in range(20):
            while True:
                data, etag = store.read_pointer("count")
                if store.swap_pointer("count", str(int(data or 0) + 1).encode(), etag):
                    break
                refused += 1
        return refused

    with ThreadPoolExecutor(6) as threads:
        refused = sum(threads.map(add_twenty, range(6)))
    assert int(store.get_bytes("count")) == 120
    assert refused > 0  # else they did not race


def test_list_is_of_a_folder_not_of_a_beginning(store):
    for key in ("a/1", "a/b/2", "ab/3"):
        store.put_bytes(key, b"x")
    assert store.list("a") == ["a/1", "a/b/2"]
    assert store.list() == ["a/1", "a/b/2", "ab/3"]
    assert store.list("none") == []


def test_entries_have_size_and_time(store):
    store.put_bytes("a/1", b"xyz")
    (entry,) = store.entries("a")
    assert (entry.key, entry.size) == ("a/1", 3)
    assert abs(entry.modified - time.time()) < 600


def test_delete_may_be_repeated(store):
    store.put_bytes("gone", b"x")
    store.delete("gone")
    store.delete("gone")
    with pytest.raises(MissingObjectError, match="gone"):
        store.get_bytes("gone")


def test_an_object_larger_than_it_may_be_is_refused(store):
    store.put_bytes("long", b"x" * 1001)
    with pytest.raises(IntegrityError, match="larger than 1000 bytes"):
        store.get_bytes("long", limit=1000)


@pytest.mark.parametrize(
    "key", ["", "../x", "a/../b", "/etc/x", "a//b", "a/", "./a", ".hidden", "a\\b", "a\nb", "a\0b", "~/x", "x" * 901]
)
def test_keys_that_could_leave_the_store_are_refused(store, key):
    for action in (store.get_bytes, store.delete, lambda k: store.put_bytes(k, b"x"), store.read_pointer):
        with pytest.raises(StorageError, match="is not an object name"):
            action(key)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("gs://bucket/x", "s3://bucket/prefix"),
        ("s3:/bucket/x", "s3://bucket/prefix"),
        ("s3://", "s3://bucket/prefix"),
        ("file://host/x", "s3://bucket/prefix"),
        ("s3://AKCANARY:secretcanary@bucket/x", "must not carry credentials"),
        ("s3://bucket/x?endpoint_override=127.0.0.1", "AWS_ENDPOINT_URL"),
        ("s3://bucket/../x", "is not an object name"),
    ],
)
def test_a_bad_url_is_refused_without_repeating_secrets(url, says):
    with pytest.raises(StorageError, match=says) as refused:
        open_store(url)
    assert "canary" not in str(refused.value).lower()


def test_a_folder_is_named_by_path_or_url(tmp_path):
    folder = tmp_path / "with space"
    open_store(str(folder)).put_bytes("a", b"x")
    assert open_store(folder.as_uri()).get_bytes("a") == b"x"
    assert Path(open_store(open_store(str(folder)).url).root) == folder


def test_a_place_that_is_no_folder_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot write .*file/store"):
        check(FolderStore(tmp_path / "file" / "store"))


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match="a link that leaves the store"):
        FolderStore(tmp_path / "store").get_bytes("link")


def test_a_write_that_fails_leaves_no_object_and_no_litter(tmp_path, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    store = FolderStore(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        store.put_bytes("a", b"x")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


class Forgetful(FolderStore):
    """Ignores one of the conditions, as some S3 servers do."""

    def __init__(self, root: Path, ignored: str):
        super().__init__(root)
        self.ignored = ignored

    def create(self, key, source):
        if self.ignored == "create":
            self.delete(key)
        return super().create(key, source)

    def swap_pointer(self, key, data, expected_etag):
        if self.ignored == ("absent" if expected_etag is None else "etag"):
            expected_etag = self.read_pointer(key)[1]
        return super().swap_pointer(key, data, expected_etag)


@pytest.mark.parametrize(
    ("ignored", "says"), [("create", "replaced an object"), ("absent", "created a pointer twice"), ("etag", "outdated")]
)
def test_check_finds_a_store_that_ignores_conditions(tmp_path, ignored, says):
    with pytest.raises(StorageError, match=says):
        check(Forgetful(tmp_path, ignored))
    assert Forgetful(tmp_path, ignored).list() == []
