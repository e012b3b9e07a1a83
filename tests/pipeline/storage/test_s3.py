"""S3 where it differs from a folder: an address, credentials, and a wire that breaks. Against one real server."""

import contextlib
import os
import socket
import threading
import time

import pytest

from pipeline.errors import StorageError
from pipeline.storage.opening import check, open_store
from tests.servers import free_ports, s3_server

pytestmark = pytest.mark.short_run


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("url", "variables", "says"),
    [
        ("s3://nosuch/x", {}, "there is no such bucket"),
        ("s3://bucket/x", {"AWS_SECRET_ACCESS_KEY": "wrongcanary"}, "the secret key is wrong"),
        ("s3://bucket/x", {"AWS_ACCESS_KEY_ID": "AKWRONGCANARY"}, "does not know this access key"),
        ("s3://bucket/x", {"AWS_ENDPOINT_URL": "nonsense"}, "Invalid endpoint"),
        ("s3://bucket/x", {"AWS_PROFILE": "nosuch"}, "profile"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch, url, variables, says):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=says) as refused:
        check(open_store(url))
    assert "canary" not in str(refused.value).lower()


def test_no_credentials_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        check(open_store("s3://bucket/x"))


def test_a_silent_endpoint_is_named_within_seconds(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    (tmp_path / "file").write_bytes(b"x")
    store = open_store("s3://bucket/x")
    for action in (lambda: check(store), store.list, lambda: store.put_file("a", tmp_path / "file")):
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"no connection to http://127\.0\.0\.1"):
            action()
        assert time.monotonic() - started < 15


def test_mlflows_endpoint_variable_is_enough(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    check(open_store("s3://bucket/by-mlflow"))


class Wire:
    """A proxy that closes the connection after `cut` bytes of a reply, once; the request has reached the server then."""

    def __init__(self, target_port: int):
        self.target_port, self.cut = target_port, None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed at the end
            while True:
                client = self.listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self.target_port))
                for pump in (self._requests, self._replies):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        self._close(client, server)

    def _replies(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if self.cut is not None and not data.startswith(b"HTTP/1.1 100"):  # that only asks for the body
                    if len(data) > self.cut:
                        client.sendall(data[: self.cut])
                        self.cut = None
                        break
                    self.cut -= len(data)
                client.sendall(data)
        self._close(client, server)

    @staticmethod
    def _close(*ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def wire(server, monkeypatch):
    wire = Wire(int(server.endpoint_url.rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", wire.url)
    yield wire
    wire.listener.close()


def test_a_swap_whose_reply_was_lost_is_still_ours(wire):
    store = open_store("s3://bucket/swap")
    wire.cut = 0
    assert store.swap_pointer("p", b"1", None)
    etag = store.read_pointer("p")[1]
    wire.cut = 0
    assert store.swap_pointer("p", b"2", etag)
    assert wire.cut is None
    assert store.read_pointer("p")[0] == b"2"


def test_a_swap_repeated_after_a_lost_reply_does_not_claim_anothers(wire, server, monkeypatch):
    store = open_store("s3://bucket/swap2")
    assert store.swap_pointer("p", b"theirs", None)
    wire.cut = 0
    assert not store.swap_pointer("p", b"ours", None)
    assert wire.cut is None
    assert store.read_pointer("p")[0] == b"theirs"


def test_a_file_whose_reply_was_lost_is_stored(wire):
    store = open_store("s3://bucket/put")
    wire.cut = 0
    store.put_bytes("a", b"content")
    assert wire.cut is None
    assert store.get_bytes("a") == b"content"


def test_a_download_goes_on_where_it_was_cut(wire):
    store = open_store("s3://bucket/get")
    content = os.urandom(3 << 20)
    store.put_bytes("a", content)
    wire.cut = 1_700_000
    assert b"".join(store.chunks("a")) == content
    assert wire.cut is None
