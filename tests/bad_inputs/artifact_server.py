"""A server of MLflow's artifacts that lists what nobody asked for, under names of its own."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextlib.contextmanager
def artifact_server(name: str) -> Iterator[str]:
    """Serves `name` as the content of every folder, and bytes for every file; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listing = "mlflow-artifacts/artifacts?" in self.path or self.path.endswith("/artifacts")
            files = {"files": [{"path": name, "is_dir": False, "file_size": 4}, {"path": "x", "is_dir": True}]}
            body = json.dumps(files).encode() if listing else b"evil"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Disposition", f'attachment; filename="{name}"')
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
