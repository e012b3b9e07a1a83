"""Reading a data set from a web server: what is asked for, what a broken wire costs, what is refused."""

import pytest

from pipeline.data import source as data_source
from pipeline.data.source import is_remote, open_source
from pipeline.errors import ChangedObjectError, MissingObjectError, StorageError
from tests.servers import free_ports
from tests.web import web_server

CONTENT = bytes(range(256)) * 9000  # more than two chunks


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(data_source.time, "sleep", lambda seconds: None)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a b#1.bin").write_bytes(CONTENT)
    with web_server(tmp_path) as server:
        yield server


NAME = "sub/a b#1.bin"


@pytest.mark.parametrize(
    ("root", "remote"),
    [("s3://b/p", True), ("https://h/x", True), ("S3://b", True), ("file:///x", True), ("s3:/b", True),
     ("data/coco", False), ("/data", False), ("~/x", False), ("c:/x", False)],
)  # fmt: skip
def test_an_address_is_told_from_a_folder(root, remote):
    assert is_remote(root) == remote


@pytest.mark.parametrize(
    ("url", "says"),
    [("ftp://host/x", "give a folder"), ("file:///x", "give a folder"), ("https://me:canary@host/x", "netrc"),
     ("https:///x", "must name a host"), ("https://host/x?sig=canary", "no '\\?'"), ("s3://k:canary@b/x", "credentials")],
)  # fmt: skip
def test_other_addresses_are_refused_without_repeating_secrets(url, says):
    with pytest.raises(StorageError, match=says) as refused:
        open_source(url)
    assert "me:canary" not in str(refused.value)
    assert "k:canary" not in str(refused.value)


def test_size_version_and_content(server):
    source = open_source(server.url + "/")
    size, version = source.info(NAME)
    assert (size, bool(version)) == (len(CONTENT), True)
    assert b"".join(source.chunks(NAME)) == CONTENT
    assert b"".join(source.chunks(NAME, 1_000_000, version)) == CONTENT[1_000_000:]
    assert server.ranges == [(NAME, 1_000_000)]
    assert source.listing("sub") is None


def test_a_download_goes_on_where_it_was_cut(server):
    server.cut[NAME] = 1_500_000
    assert b"".join(open_source(server.url).chunks(NAME)) == CONTENT
    assert len(server.ranges) == 1
    assert server.sent < len(CONTENT) + 1_100_000


def test_a_server_without_ranges_begins_anew_and_what_was_read_is_skipped(server):
    server.understands_ranges = False
    server.cut[NAME] = 1_500_000
    assert b"".join(open_source(server.url).chunks(NAME)) == CONTENT
    assert b"".join(open_source(server.url).chunks(NAME, 2_000_000)) == CONTENT[2_000_000:]


def test_a_file_that_changed_meanwhile_is_not_patched_together(server, tmp_path):
    source = open_source(server.url)
    version = source.info(NAME).version
    (tmp_path / NAME).write_bytes(CONTENT[::-1])
    with pytest.raises(ChangedObjectError):
        list(source.chunks(NAME, 1000, version))
    with pytest.raises(ChangedObjectError):
        list(source.chunks(NAME, len(CONTENT) + 5))


def test_a_busy_server_is_asked_again_and_at_last_named(server):
    server.busy = [503, 429, 500]
    assert b"".join(open_source(server.url).chunks(NAME)) == CONTENT
    server.busy = [503] * 20
    with pytest.raises(StorageError, match="answers 503; check"):
        open_source(server.url).info(NAME)
    server.busy = []
    with pytest.raises(StorageError, match="no connection"):
        list(open_source(f"http://127.0.0.1:{free_ports(1)[0]}").chunks("x"))


@pytest.mark.parametrize(("status", "error", "says"), [(404, MissingObjectError, "no such file"), (403, StorageError, "netrc"),
                                                       (401, StorageError, "netrc"), (418, StorageError, "418")])  # fmt: skip
def test_refusals_are_told_apart(server, status, error, says):
    server.busy = [status]
    with pytest.raises(error, match=says):
        list(open_source(server.url).chunks(NAME))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", ".x", "a\\b"])
def test_names_that_leave_the_address_are_refused(server, name):
    with pytest.raises(StorageError, match="not an object name"):
        list(open_source(server.url).chunks(name))
    assert not server.requests
