"""A web server for tests, a thread on a free loopback port, that serves a folder with ranges and can misbehave."""

import contextlib
import email.utils
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class WebServer:
    """What tests may look at and change while it serves."""

    def __init__(self, folder: Path):
        self.folder, self.url = folder, ""
        self.requests: Counter[str] = Counter()  # GETs by name
        self.ranges: list[tuple[str, int]] = []  # those that asked for a part: name, first byte
        self.sent = 0  # bytes of bodies
        self.understands_ranges = True
        self.has_versions = True
        self.busy: list[int] = []  # statuses to answer with before anything else
        self.cut: dict[str, int] = {}  # name -> bytes after which its connection is closed, once
        self.before: Callable[[str], None] = lambda name: None


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[WebServer]:
    state = WebServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            name = unquote(self.path).lstrip("/")
            if body:
                state.requests[name] += 1
            state.before(name)
            if state.busy:
                return self.plain(state.busy.pop(0))
            file = state.folder / name
            if not file.is_file():
                return self.plain(404)
            content, start = file.read_bytes(), 0
            version = f'"{file.stat().st_mtime_ns:x}"'
            wanted, same = self.headers.get("Range"), self.headers.get("If-Range", version)
            if wanted and state.understands_ranges and same == version:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                state.ranges.append((name, start))
                if start >= len(content):
                    return self.plain(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if state.has_versions:
                self.send_header("ETag", version)
                self.send_header("Last-Modified", email.utils.formatdate(file.stat().st_mtime))
            self.end_headers()
            if body:
                end = state.cut.pop(name, len(content))
                with contextlib.suppress(OSError):
                    self.wfile.write(content[start:end])
                state.sent += max(0, end - start)
                if end < len(content):
                    self.close_connection = True

        def plain(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
