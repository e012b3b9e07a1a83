"""The verb that serves MLflow's pages."""

import argparse
import os
import subprocess
import sys

from pipeline.arguments import Verbs, number
from pipeline.verbs.shared import values_and_places


def add_to(verbs: Verbs) -> None:
    added = verbs.add("ui", _ui, "serve MLflow's pages for the embedded tracking database")
    added.add_argument("settings", nargs="*", metavar="key=value", help="such as output=runs")
    added.add_argument("--host", default="127.0.0.1")
    added.add_argument("--port", type=number(int, 1, 65_535), default=5000)


def _ui(options: argparse.Namespace) -> int:
    from pipeline.tracking.access import resolve_uri

    _, tracking, _ = values_and_places(None, options.settings)
    if tracking.startswith("http"):
        print(f"MLflow is served at {tracking}")
        return 0
    print(f"MLflow: http://{options.host}:{options.port}   (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", resolve_uri(tracking, "."), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.call([*command, "--host", options.host, "--port", str(options.port)], env=environment)
