"""Eight processes race for one pointer, in a folder and on a real S3 server: every swap that was won is in the end there.

Each reads the pointer, adds one, and swaps until it has won `--count` times. The pointer then holds the number of all swaps,
and the numbers that the processes won are 1, 2, 3 ... without a gap and without one given twice.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.storage.opening import open_store
from tests.servers import s3_server
from tests.system.chaos.summary import Row, begin, conclude, parser

KEY = "race/pointer.json"
WRITERS = 8


def race(url: str, count: int, seed: int, writers: int) -> Row:
    """The race on the store at `url`."""
    where = "S3 server" if url.startswith("s3://") else "folder"
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.system.chaos.pointer_race", "--count", str(count), "--writer", url]
    racers = [
        subprocess.Popen([*command, "--seed", str(seed * 1000 + number)], stdout=subprocess.PIPE, text=True)
        for number in range(writers)
    ]
    won: list[int] = []
    refused = 0
    for racer in racers:
        said = racer.communicate()[0]
        if racer.returncode == 0:
            result = json.loads(said.splitlines()[-1])
            won += result["won"]
            refused += result["refused"]
    total = writers * count
    final = json.loads(open_store(url).read_pointer(KEY)[0] or b'{"count": 0}')["count"]
    there = kept(won, final)
    lost = f"{total - there} lost updates"
    return Row(where, total, there, f"{writers} writers x {count}; {refused} refusals; {lost}; {time.monotonic() - began:.0f} s")


def kept(won: Sequence[int], final: int) -> int:
    """How many of the swaps that were won the pointer, which says `final`, still shows: none if a number was won twice."""
    once = set(won)
    return len(once & set(range(1, final + 1))) if len(once) == len(won) else 0


def write(url: str, count: int, seed: int) -> dict:
    """One writer: the numbers that it won, and how often it was refused."""
    store, rng, won, refused = open_store(url), random.Random(seed), [], 0
    while len(won) < count:
        data, etag = store.read_pointer(KEY)
        mine = (json.loads(data)["count"] if data else 0) + 1
        if store.swap_pointer(KEY, json.dumps({"count": mine, "by": os.getpid()}).encode(), etag):
            won.append(mine)
        else:
            refused += 1
            time.sleep(rng.uniform(0, 0.002))
    return {"won": won, "refused": refused}


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("pointer_race", __doc__.partition("\n")[0], 1000, "swaps that each writer wins")
    made.add_argument("--writers", type=int, default=WRITERS)
    made.add_argument("--only", choices=["folder", "s3"], help="one of the two stores")
    made.add_argument("--writer", metavar="URL", help="be one of the writers")
    options = made.parse_args(argv)
    if options.writer:
        print(json.dumps(write(options.writer, options.count, options.seed)))
        return 0
    began, rows = begin(), []
    with tempfile.TemporaryDirectory() as name:
        if options.only != "s3":
            rows.append(race(f"{name}/store", options.count, options.seed, options.writers))
        if options.only != "folder":
            with s3_server(Path(name) / "s3") as server:
                os.environ.update(server.env())
                rows.append(race(f"s3://{server.make_bucket('race')}", options.count, options.seed, options.writers))
    return conclude("pointer_race", rows, seed=options.seed, began=began)


if __name__ == "__main__":
    sys.exit(main())
