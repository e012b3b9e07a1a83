"""Settings that every test runs under."""

import atexit
import os
import shutil
import tempfile

# Before anything imports torch, Ray or MLflow: one thread a process on a shared machine, quick polls, nobody's own servers.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="tood-state-")  # where what MLflow has not taken would be kept
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
for _name in (
    "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS",
    "AWS_PROFILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "MLFLOW_S3_ENDPOINT_URL",
):
    os.environ.pop(_name, None)
