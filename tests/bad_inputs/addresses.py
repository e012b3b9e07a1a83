"""Addresses of tracking, object store, data and registered models; and what lies behind them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, Cases, Place, nothing


def tracking(what: str, uri: str, says: str, through_command: bool = False, where: str = "tracking address") -> Case:
    def load(place: Place):
        from pipeline.tracking.access import connect, resolve_uri

        connect(resolve_uri(place.of(uri), place.folder))

    command = f"models list --set 'tracking.uri={uri}'" if through_command else ""
    return Case(what, nothing, load, where, says, command)


def store(what: str, url: str, says: str, where: str, through_command: bool = False) -> Case:
    def load(place: Place):
        from pipeline.storage.opening import check, open_store

        check(open_store(place.of(url)))

    command = f"data pack --root {{sound}}/data --output '{url}'" if through_command else ""
    return Case(what, nothing, load, where, says, command)


def data(what: str, root: str, says: str, where: str = "data.root", through_command: bool = False) -> Case:
    def load(place: Place):
        from pipeline.data.source import is_remote, open_source

        assert is_remote(root)
        return open_source(root)

    command = f"data check {{sound}}/tiny.yaml 'data.root={root}'" if through_command else ""
    return Case(what, nothing, load, where, says, command)


def registered(what: str, name: str, says: str, through_command: bool = False) -> Case:
    def load(place: Place):
        from pipeline.registry.models import pull

        return pull(name, f"sqlite:///{place.sound}/mlflow.db", place.folder / "out")

    command = f"pull '{name}' --set tracking.uri=sqlite:///{{sound}}/mlflow.db --output {{out}}" if through_command else ""
    return Case(what, nothing, load, "", says, command)


def stored(what: str, damage: Callable[[Path], Any], where: str, says: str) -> Case:
    """A model in a store, as the registry names it, with one fault."""

    def make(place: Place) -> None:
        damage(shutil.copytree(place.sound / "model", place.folder / "stored"))

    def load(place: Place):
        from pipeline.storage.checkpoints import fetch_url

        return fetch_url(str(place.folder / "stored"), place.folder / "out")

    return Case(what, make, load, where, says)


def listing(what: str, name: str, says: str, content: bytes = b"x", **entry: Any) -> Case:
    """A stored manifest that names a file more."""

    def damage(folder: Path) -> None:
        values = json.loads((folder / "manifest.json").read_text())
        values["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} | entry
        (folder / "manifest.json").write_text(json.dumps(values))

    return stored(what, damage, "", says)


CASES: Cases = {
    "tracking-scheme": tracking("an address of another kind", "ftp://host", "expected http(s)://", True),
    "tracking-file-store": tracking("MLflow's folder of files, which it gave up", "file:///tmp/mlruns", "expected http(s)://"),
    "tracking-no-host": tracking("no host", "http://", "expected http(s)://"),
    "tracking-brackets": tracking("a bracket that is never closed", "http://[::1", "expected http(s)://", True),
    "tracking-port": tracking("a port that is no number", "http://host:port", "expected http(s)://"),
    "tracking-large-port": tracking("a port beyond the last", "http://host:99999", "expected http(s)://"),
    "tracking-password": tracking("a password in the address", "http://me:hidden@host", "holds credentials", True),
    "tracking-database-password": tracking("a database's password in the address", "postgresql://me:hidden@host/db", "holds a password", True),
    "tracking-sqlite-alone": tracking("SQLite without a file", "sqlite://", "expected http(s)://"),
    "tracking-sqlite-folder": tracking("a folder for SQLite's file", "sqlite:///{folder}", "cannot be opened", where="{folder}"),
    "tracking-sqlite-not": tracking("an SQLite file that is none", "sqlite:///{sound}/tiny.yaml", "cannot be opened", True, where="tiny.yaml"),
    "tracking-sqlite-below-file": tracking("an SQLite file below a file", "sqlite:///{sound}/tiny.yaml/x.db", "cannot be opened", where="tiny.yaml"),
    "tracking-driver": tracking("a driver that is not installed", "sqlite+nodriver:///{folder}/x.db", "cannot be opened", where="nodriver"),
    "store-scheme": store("a store of another kind", "ftp://host/x", "is not a storage URL", "ftp://host/x", True),
    "store-no-bucket": store("no bucket", "s3:///x", "is not a storage URL", "s3:///x"),
    "store-brackets": store("a bracket that is never closed", "s3://[x/y", "is not a storage URL", "s3://[x/y", True),
    "store-one-slash": store("a slash too few", "s3:/bucket/x", "is not a storage URL", "s3:/bucket/x"),
    "store-keys": store("keys in the address", "s3://AKID:hidden@bucket/x", "must not carry credentials", "bucket/x", True),
    "store-query": store("a question in the address", "s3://bucket/x?region=eu", "has no '?'", "s3://bucket/x"),
    "store-parent": store("a prefix that leaves the bucket's folder", "s3://bucket/a/../b", "is not an object name", "a/../b"),
    "store-other-host": store("a file of another machine", "file://host/x", "is not a storage URL", "file://host/x"),
    "store-below-file": store("a folder below a file", "{sound}/tiny.yaml/x", "cannot write", "{sound}/tiny.yaml/x", True),
    "store-nul": store("a NUL in a folder's name", "{folder}/a\0b", "is not a storage URL", "{folder}/a"),
    "data-scheme": data("data of another kind of place", "ftp://host/x", "is no address that data comes from", through_command=True),
    "data-no-host": data("no host", "https:///x", "must name a host"),
    "data-brackets": data("a bracket that is never closed", "https://[x/y", "must name a host", through_command=True),
    "data-password": data("a password in the address", "https://me:hidden@host/x", "no credentials", through_command=True),
    "data-query": data("a question in the address", "https://host/x?token=hidden", "has no '?'"),
    "registered-nothing": registered("no name", "", "is not a model", True),
    "registered-path": registered("a name that leaves the registry", "models:/../x", "is not a model", True),
    "registered-slashes": registered("a name of three parts", "models:/a/b/c", "is not a model"),
    "registered-run": registered("a run in place of a model", "runs:/abc/model", "is not a model"),
    "registered-quote": registered("a name that ends a filter", "x' or name like '%", "is not a model"),
    "registered-unknown": registered("a model that there is not", "models:/missing@champion", "no model 'missing'", True),
    "registered-huge-version": registered("a version of thirty digits", f"models:/known/{'9' * 30}", "is not a model"),
    "stored-nothing": stored("nothing there", lambda folder: shutil.rmtree(folder), "{folder}/stored/manifest.json", "does not exist"),
    "stored-unfinished": stored("an upload that never ended", lambda f: (f / "manifest.json").unlink(), "{folder}/stored/manifest.json", "does not exist"),
    "stored-manifest-text": stored("a manifest that is none", lambda f: (f / "manifest.json").write_text("hello"), "{folder}/stored/manifest.json", "not a manifest"),
    "stored-manifest-deep": stored("a manifest of lists in each other", lambda f: (f / "manifest.json").write_text("[" * 10**5), "{folder}/stored/manifest.json", "not a manifest"),
    "stored-manifest-huge": stored("a manifest of seventeen megabytes", lambda f: (f / "manifest.json").write_bytes(b" " * (17 << 20)), "{folder}/stored/manifest.json", "larger than"),
    "stored-altered": stored("weights that were altered", lambda f: (f / "model.safetensors").write_bytes(b"x" * 900), "{folder}/stored/model.safetensors", ""),
    "stored-missing": stored("weights that are gone", lambda f: (f / "model.safetensors").unlink(), "{folder}/stored/model.safetensors", "does not exist"),
    "stored-longer": stored("weights longer than they should be", lambda f: (f / "model.safetensors").open("ab").write(b"x"), "{folder}/stored/model.safetensors", "larger than"),
    "stored-name-parent": listing("a file that leaves the folder", "../../x", "'../../x' is not an object name"),
    "stored-name-absolute": listing("a file by its absolute path", "/etc/x", "'/etc/x' is not an object name"),
    "stored-name-backslash": listing("a file by another system's path", "..\\x", "is not an object name"),
    "stored-name-hidden": listing("a hidden file", ".ssh/x", "is not an object name"),
    "stored-name-manifest": listing("the manifest itself", "manifest.json", "is not a sha256 and a size"),
    "stored-size-negative": listing("a negative size", "x", "is not a sha256 and a size", size=-1),
    "stored-hash-short": listing("a hash that is none", "x", "is not a sha256 and a size", sha256="abc"),
}  # fmt: skip
