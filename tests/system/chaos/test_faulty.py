"""The proxy spoils what it is told to and passes everything else as it is."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.system.chaos.faulty import CODES, KINDS, Proxy


@pytest.fixture(scope="module")
def upstream():
    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        done = 0

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            type(self).done += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Host", self.headers["Host"])
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Echo
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(upstream):
    proxy = Proxy(upstream[0])
    yield proxy
    proxy.close()


def put(proxy, **headers):
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=1)
    try:
        connection.request("PUT", "/x", b"0123456789", headers)
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.getheader("X-Host")
    finally:
        connection.close()


def test_what_is_not_spoiled_passes(proxy):
    host = proxy.url.removeprefix("http://")
    assert put(proxy) == (200, b"0123456789", host)  # the host that a signature names
    assert put(proxy, Expect="100-continue")[1] == b"0123456789"
    assert proxy.seen == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_kth_request_is_spoiled_and_no_other(proxy, upstream, kind):
    before = upstream[1].done
    proxy.arm(kind, first=2)
    assert put(proxy)[0] == 200
    if kind in CODES:
        status, body, _ = put(proxy)
        assert (status, CODES[kind].encode() in body) == (int(kind), True)
    else:
        with pytest.raises((OSError, http.client.HTTPException)):
            put(proxy)
    assert put(proxy)[0] == 200
    assert upstream[1].done - before == (3 if kind in ("cut stream", "lost reply") else 2)


def test_all_from_then_on_until_it_is_told_otherwise(proxy):
    proxy.arm("503", first=2, count=10)
    assert [put(proxy)[0] for _ in range(4)] == [200, 503, 503, 503]
    proxy.arm()
    assert put(proxy)[0] == 200
