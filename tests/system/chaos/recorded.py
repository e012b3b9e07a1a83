"""Training as the commands do it, which also notes in a ledger what it does.

    python -m tests.system.chaos.recorded LEDGER tood train ...      the pipeline's command
    python -m tests.system.chaos.recorded LEDGER training ...        `python -m tood.training ...`

The ledger is a file of JSON lines: each batch's images as it was drawn, each checkpoint as it was written and as it was
stored. Nothing of the training is changed, but that an upload may be slowed, so that a kill can meet it.
"""

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

LEDGER, PAUSE = "CHAOS_LEDGER", "CHAOS_UPLOAD_PAUSE"  # environment: the file; seconds before each file of an upload


def note(what: str, **values: Any) -> None:
    """One line, in one write, for several processes may note at once."""
    line = json.dumps({"what": what, "time": time.time(), "pid": os.getpid(), **values}) + "\n"
    descriptor = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def record() -> None:
    """From now on this process notes what it trains."""
    from tood import training
    from tood.data.loaders import TrainLoader
    from tood.ranks import place

    save, batches_of = training.save, TrainLoader.epoch

    @functools.wraps(save)
    def noted_save(run, *arguments, **options):
        save(run, *arguments, **options)
        note("written", step=run.step)

    @functools.wraps(batches_of)
    def noted_epoch(self, epoch, start_batch=0):
        note("begun", rank=place()[0], world=place()[1], epoch=epoch, batch=start_batch)
        for i, batch in enumerate(batches_of(self, epoch, start_batch), start=start_batch):
            note("batch", rank=place()[0], epoch=epoch, batch=i, images=batch.image_ids.tolist())
            yield batch

    training.save, TrainLoader.epoch = noted_save, noted_epoch


def work(job: dict) -> None:
    """What a worker of Ray Train runs here: the pipeline's own function, noted."""
    from pipeline import worker
    from pipeline.storage.folder import FolderStore

    # Nodes that were started before the run do not have its environment; Ray's state lies at OUTPUT/RUN/ray.
    os.environ.setdefault(LEDGER, str(Path(job["address"]["ray_storage"]).parents[2] / "ledger.jsonl"))
    record()
    upload, put_file = worker.upload_checkpoint, FolderStore.put_file

    def noted_upload(store, folder, *arguments):
        step = json.loads((folder / "manifest.json").read_text())["step"]
        note("uploading", step=step)
        prefix = upload(store, folder, *arguments)
        note("stored", step=step)
        return prefix

    def slow_put_file(self, key, path):
        time.sleep(float(os.environ.get(PAUSE, "0")))
        return put_file(self, key, path)

    worker.upload_checkpoint, FolderStore.put_file = noted_upload, slow_put_file
    worker.work(job)


def run(arguments: list[str]) -> int:
    ledger, command, *rest = arguments
    os.environ[LEDGER] = str(Path(ledger).absolute())
    if command == "training":
        from tood import training

        record()
        return training.main(rest)
    from pipeline import cli, train
    from tests.system.chaos import recorded

    train.work = recorded.work  # sent to the workers by its name; what they call themselves is unchanged
    return cli.main(rest)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
