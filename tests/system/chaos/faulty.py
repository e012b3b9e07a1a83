"""A proxy before an HTTP server that spoils requests on purpose: the k-th since `arm`, or that one and all after it."""

import contextlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

CODES = {"500": "InternalError", "503": "SlowDown", "409": "ConditionalRequestConflict", "412": "PreconditionFailed"}
KINDS = (*CODES, "timeout", "cut stream", "lost reply")
_HOP = {"connection", "transfer-encoding", "expect", "keep-alive"}  # headers between two ends of one wire


class Proxy:
    """`url` takes the place of the server's; requests pass until `arm` says which is spoiled, and how."""

    def __init__(self, target: str):
        self.target = urlsplit(target).netloc
        self._lock = threading.Lock()
        self.seen, self._kind, self._first, self._last = 0, "", 0, 0
        self.over = threading.Event()  # lets go of requests that are kept waiting
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def arm(self, kind: str = "", first: int = 0, count: int = 1) -> None:
        """Count requests anew; spoil `count` of them from the `first` on (1 is the next). No kind: let all pass."""
        with self._lock:
            self.over.set()
            self.over = threading.Event()
            self.seen, self._kind, self._first, self._last = 0, kind, first, first + count - 1

    def fault(self) -> str:
        """Of the request that has just come: how it is spoiled, "" if it is not."""
        with self._lock:
            self.seen += 1
            return self._kind if self._first <= self.seen <= self._last else ""

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[Proxy]

    def _pass(self) -> None:
        body, kind = self._body(), self.proxy.fault()
        with contextlib.suppress(OSError):
            if kind == "timeout":
                self.proxy.over.wait(60)
                self.close_connection = True
            elif kind in CODES:
                self._reply(int(kind), [], _error(CODES[kind]) if self.command != "HEAD" else b"")
            else:
                self._forward(body, kind)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def _forward(self, body: bytes, kind: str) -> None:
        upstream = http.client.HTTPConnection(self.proxy.target, timeout=60)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP}
        if body:
            headers["Content-Length"] = str(len(body))
        upstream.request(self.command, self.path, body or None, headers)  # the Host stays as it was signed
        reply = upstream.getresponse()
        content = reply.read()
        upstream.close()
        if kind == "lost reply":
            self.close_connection = True
            return
        kept = [(key, value) for key, value in reply.getheaders() if key.lower() not in {*_HOP, "content-length"}]
        length = reply.getheader("Content-Length") if self.command == "HEAD" else None
        self._reply(reply.status, kept, content, cut=kind == "cut stream", length=length)

    def _reply(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut=False, length: str | None = None) -> None:
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        lines += [f"{key}: {value}" for key, value in headers]
        if status not in (204, 304):
            lines.append(f"Content-Length: {length or len(content)}")
        data = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if cut:  # half of the content, or of the headers where there is none
            data = data + content[: len(content) // 2] if len(content) > 1 else data[: len(data) // 2]
            self.close_connection = True
        else:
            data += content
        self.wfile.write(data)
        self.wfile.flush()

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def log_message(self, *_) -> None:
        """Nothing: the table at the end says it all."""


def _error(code: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>'.encode()
