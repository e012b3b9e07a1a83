"""The entry `local` of cluster.yaml, by which `tood` finds the stack of this machine."""

import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from infra.local.services import REGION

MADE = "# written by `make stack`, which writes it anew each time; a file without this line is left alone\n"


def write_profile(file: Path, folder: Path, addresses: Mapping[str, str], bucket: str) -> Path:
    """Write the profile to `file`, or into the stack's folder where a person keeps clusters of their own in `file`."""
    if file.exists() and not file.read_text().startswith(MADE):
        file = folder / "cluster.yaml"
    secrets = folder / "secrets"
    entry = {
        "description": "two Ray nodes, MLflow on PostgreSQL and an S3 server, all on this machine",
        "jobs": addresses["dashboard"],
        "token": {"file": str(secrets / "ray_token")},
        "python": sys.executable,
        "folder": str(folder / "jobs"),
        "settings": {"tracking.uri": addresses["mlflow"], "storage.url": f"s3://{bucket}/tood", "ray.address": "auto"},
        "environment": {
            "AWS_ENDPOINT_URL": addresses["s3"],
            "AWS_DEFAULT_REGION": REGION,
            "MLFLOW_TRACKING_USERNAME": "admin",
        },
        "secrets": {
            "AWS_ACCESS_KEY_ID": {"file": str(secrets / "s3_access_key")},
            "AWS_SECRET_ACCESS_KEY": {"file": str(secrets / "s3_secret_key")},
            "MLFLOW_TRACKING_PASSWORD": {"file": str(secrets / "mlflow_password")},
        },
    }
    (folder / "jobs").mkdir(exist_ok=True)
    file.write_text(MADE + yaml.safe_dump({"default": "local", "clusters": {"local": entry}}, sort_keys=False, width=130))
    return file


def forget_profile(file: Path, folder: Path) -> None:
    """Delete the file if it is the profile of the stack in `folder`."""
    if file.exists() and file.read_text().startswith(MADE) and str(folder / "secrets") in file.read_text():
        file.unlink()
