"""Secrets put wherever one may come from, and the search for them in whatever was written."""

import base64
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN", "PGPASSWORD", "HF_TOKEN", "LAB_RAY_TOKEN"),
)
FILES = ("lab_secret_key", "lab_token")  # that cluster.yaml names
ADDRESSES = ("endpoint", "tracking", "store", "data", "proxy", "jobs", "mlflow_uri")  # with user:password@ in them


def canary(name: str) -> str:
    """The secret of this name; like one by its looks, and like no other text. With signs that addresses and JSON escape."""
    return f"c4n4ry-{name.lower().replace('_', '-')}-Wx81mzQ/pL0+x%3"


def all_canaries() -> dict[str, str]:
    return {name: canary(name) for name in (*VARIABLES, *FILES, *ADDRESSES)}


def address(scheme: str, name: str, rest: str) -> str:
    return f"{scheme}://me:{quote(canary(name), safe='')}@{rest}"


def forms(secret: str) -> set[bytes]:
    """How a secret may be written down: as it is, in an address, in JSON, and in base64 at each offset."""
    texts = {secret, quote(secret), quote(secret, safe=""), secret.replace("/", "\\/")}
    found = {text.encode() for text in texts}
    for start in range(3):
        encoded = base64.b64encode(b"x" * start + secret.encode())
        found.add(encoded[4 if start else 0 : -4])
    found.add(secret.partition("-Wx")[0].encode() + b"-Wx")  # its beginning alone is too much already
    return found


def search(where: dict[str, bytes], secrets: Iterable[str]) -> list[str]:
    """Which secret is found where."""
    wanted = {secret: forms(secret) for secret in secrets}
    return [
        f"{secret[:30]} in {name}"
        for name, data in where.items()
        for secret, ways in wanted.items()
        if any(way in data for way in ways)
    ]


def contents(*folders: Path) -> dict[str, bytes]:
    """Every file beneath, databases and hidden files too; names count as content."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            found[f"the name {path}"] = os.fsencode(path.relative_to(folder))
            if path.is_file() and not path.is_symlink():
                found[str(path)] = path.read_bytes()
    return found
