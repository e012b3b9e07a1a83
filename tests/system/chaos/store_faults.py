"""The object store fails at every request in turn, in every way, while a checkpoint is stored, registered, promoted, fetched.

A real S3 server behind a proxy that spoils the k-th request, for every k: 500, 503, 409, 412, no reply in time, a reply cut
off in its midst, a reply lost after the work was done; that request alone, or it and all after it. After each: everything
with a manifest is whole, `latest` and `champion` lead to whole checkpoints, what was fetched is what was stored or is not
there; and the same again without a fault succeeds.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient

from pipeline.registry.access import CHAMPION, find_version, parse, registry
from pipeline.registry.files import verify_version
from pipeline.registry.models import publish
from pipeline.registry.promotion import promote
from pipeline.storage import lock, s3
from pipeline.storage.checkpoints import fetch, upload_checkpoint, verify
from pipeline.storage.opening import open_store
from pipeline.storage.pointers import latest
from pipeline.storage.store import Store
from pipeline.storage.upkeep import check
from pipeline.tracking.runs import experiment_id
from tests.pipeline.checkpoints import make_checkpoint
from tests.servers import s3_server
from tests.system.chaos.faulty import KINDS, Proxy
from tests.system.chaos.summary import Row, begin, conclude, parser
from tood.errors import ToodError

NAME, RUN, BUCKET = "chaos", "run", "chaos"
ENDLESS = 10**6
MODES = {"one request": 1, "all from then on": ENDLESS}


class Lab:
    """An S3 server behind a proxy, a registry, and work to do with both; each scenario has a folder of the bucket."""

    def __init__(self, folder: Path, server):
        self.folder, self.proxy = folder, Proxy(server.endpoint_url)
        os.environ.update(server.env() | {"AWS_ENDPOINT_URL": self.proxy.url, "MLFLOW_S3_ENDPOINT_URL": self.proxy.url})
        server.make_bucket(BUCKET)
        self.tracking = f"sqlite:///{folder / 'mlflow.db'}"
        with registry(self.tracking):
            pass
        client = MlflowClient(self.tracking)
        self.run_id = client.create_run(experiment_id(self.tracking, NAME)).info.run_id
        self.number = 0
        first = self.scenario()
        self.proxy.arm()
        first.work()  # its model is the first champion
        self.requests = self.proxy.seen

    def scenario(self) -> "Scenario":
        self.number += 1
        return Scenario(self, self.number)


class Scenario:
    def __init__(self, lab: Lab, number: int):
        self.lab, self.number = lab, number
        self.value = 0.1 + number / 100_000  # each better than all before
        info = {"config_hash": "c0ffee", "dataset": "d" * 64, "names": ["cell"], "epoch": 1, "step": number}
        self.info = info | {"metric": "val/AP", "value": self.value}
        model = info | {"metrics": {"val/AP": self.value}}
        self.source = make_checkpoint(lab.folder / f"source{number}", step=number, seed=number, info=model)
        self.url = f"s3://{BUCKET}/{number}"
        self.fetched = lab.folder / f"fetched{number}"

    @property
    def store(self) -> Store:
        return open_store(self.url)

    def work(self) -> None:
        """What a run and a person do: store, register (better: it becomes champion), promote, fetch."""
        store = self.store
        prefix = upload_checkpoint(store, self.source, RUN)
        version = publish(
            tracking_uri=self.lab.tracking, name=NAME, store=store, prefix=prefix, run_id=self.lab.run_id, info=self.info, tags={}
        )
        promote(self.lab.tracking, f"{NAME}/{version.version}", force=True, why="chaos")
        fetch(store, prefix, self.fetched)

    def wrong(self) -> str:
        """What a reader would stumble over now; "" if nothing."""
        store = self.store
        found = check(store)
        if found.problems:
            return f"not whole: {found.problems[0].what}"
        prefix = latest(store, RUN)
        if prefix is not None:
            verify(store, prefix)
        with registry(self.lab.tracking) as client:
            champion = find_version(client, parse(f"{NAME}@{CHAMPION}"))
        verify_version(champion, self.lab.tracking)
        if self.fetched.exists() and _content(self.fetched) != _content(self.source):
            return "other bytes were fetched than stored"
        return ""

    def again(self) -> str:
        """The same without a fault; "" if it succeeds and everything is new."""
        self.work()
        with registry(self.lab.tracking) as client:
            champion = find_version(client, parse(f"{NAME}@{CHAMPION}"))
        if not champion.source.startswith(f"{self.url}/"):
            return f"repeated, the champion is {champion.source}"
        if latest(self.store, RUN) is None or not self.fetched.exists():
            return "repeated, there is no latest or nothing was fetched"
        return self.wrong()


def one(lab: Lab, kind: str, k: int, count: int) -> str:
    """Do the work with a fault, look, do it again; "" if all was well, else what was not."""
    scenario = lab.scenario()
    lab.proxy.arm(kind, k, count)
    try:
        with suppress(ToodError):
            scenario.work()
        lab.proxy.arm()
        return scenario.wrong() or scenario.again()
    except Exception as error:  # also what is no ToodError is an answer: nobody could act on it
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        lab.proxy.arm()
        for folder in (scenario.source, scenario.fetched):
            shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("store_faults", __doc__.partition("\n")[0], 0, "scenarios, drawn from all; 0 does them all")
    made.add_argument("--labs", type=int, default=4, help="servers side by side: most of the time is spent waiting (default 4)")
    made.add_argument("--lab", type=int, help="be one of them")
    options = made.parse_args(argv)
    began = begin()
    if options.lab is not None or options.labs == 1:
        rows, requests = spoil(options.seed, options.count, options.lab or 0, options.labs)
    else:
        words = [*(argv if argv is not None else sys.argv[1:]), "--lab"]
        command = [sys.executable, "-m", "tests.system.chaos.store_faults", *words]
        labs = [subprocess.Popen([*command, str(lab)], stdout=subprocess.PIPE, text=True) for lab in range(options.labs)]
        said = [json.loads(lab.communicate()[0].splitlines()[-1]) for lab in labs]
        rows = together([Row(**row) for line in said for row in line["rows"]])
        requests = max(line["requests"] for line in said)
    return conclude("store_faults", rows, seed=options.seed, began=began, requests=requests)


def spoil(seed: int, count: int, lab_number: int, labs: int) -> tuple[list[Row], int]:
    """One lab's share of the scenarios, and how many requests the work takes."""
    s3.READ_SECONDS, s3.ATTEMPTS = 1, 3
    lock.hold.__wrapped__.__kwdefaults__.update(lease=3.0, beat=1.0)  # a lock that a fault left behind ends soon
    rows = []
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name) / "s3") as server:
        lab = Lab(Path(name), server)
        todo = [(mode, kind, k) for mode in MODES for kind in KINDS for k in range(1, lab.requests + 1)]
        if count:
            todo = random.Random(seed).sample(todo, min(count, len(todo)))
        for mode, kind, k in todo[lab_number::labs]:
            problem = one(lab, kind, k, MODES[mode])
            rows.append(Row(f"{kind}, {mode}", 1, not problem, problem and f"at request {k}: {problem}"))
        lab.proxy.close()
    return together(rows), lab.requests


def together(rows: Sequence[Row]) -> list[Row]:
    """Rows of the same harm as one, with the first remark."""
    found: dict[str, Row] = {}
    for row in rows:
        before = found.get(row.what, Row(row.what, 0, 0))
        found[row.what] = Row(row.what, before.tried + row.tried, before.survived + row.survived, before.remark or row.remark)
    return list(found.values())


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    sys.exit(main())
