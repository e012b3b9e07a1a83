"""The experiment pipeline around `tood`: Ray Train and Tune, MLflow, object storage."""

import os

# Ray and MLflow read these when they are imported, so they are set before anything here imports it; a person's own settings win.
for _name, _value in {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report waits for the controller's next poll; Ray's own is 2 s
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "180",  # finds a worker that froze after its last exchange; Ray's own is 600
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every progress line appears twice
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TQDM_PATCH_PRINT": "0",  # a print that Ray has put its own in place of cannot be saved with a sweep's callbacks
    "RAY_DEDUP_LOGS": "0",  # it takes the progress lines of different trials for repetitions
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # epochs without evaluation report no AP
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C would count as the sweep's end, and its unfinished trials as stopped for good
    "RAY_AIR_NEW_OUTPUT": "0",  # the table of trials is ours
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere unasked
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    os.environ.setdefault(_name, _value)
