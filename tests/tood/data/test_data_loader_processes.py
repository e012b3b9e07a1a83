"""Loader processes live as long as their trainer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

TRAINER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from tood.config import DataConfig
from tood.data.loaders import TrainLoader
from tood.data.coco import CocoData
from tood.data.record import ImageRecord

if __name__ == "__main__":
    record = ImageRecord(1, Path(sys.argv[1]), 30, 40, np.float32([[1, 1, 9, 9]]), np.array([0]), np.array([False]))
    data = CocoData((record,), ("a",), (1,), Path("a.json"), "")
    loader = TrainLoader(data, DataConfig(long_side=64, short_side=48, workers=1), batch_size=1, seed=0)
    next(loader.epoch(0))
    children = {p for p in os.listdir("/proc") if p.isdigit() and os.getsid(int(p)) == os.getpid()} - {str(os.getpid())}
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    print(*children, flush=True)
    sys.stdin.read()
    next(loader.epoch(1))  # and away, with the loader open
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("end", ["killed", "told to stop", "done"])
def test_loader_processes_end_with_the_trainer_and_not_before(tmp_path, end):
    """It may be killed, exit with its loader open, or do so in its own time after a SIGTERM to its process group."""
    image, script = tmp_path / "image.png", tmp_path / "trainer.py"
    Image.new("RGB", (40, 30)).save(image)
    script.write_text(TRAINER)
    trainer = subprocess.Popen(
        [sys.executable, str(script), str(image)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    try:
        children = [int(child) for child in trainer.stdout.readline().split()]
        assert len(children) >= 2  # the fork server and the loader process
        if end == "killed":
            os.kill(trainer.pid, signal.SIGKILL)
        else:
            if end == "told to stop":
                os.killpg(trainer.pid, signal.SIGTERM)
                time.sleep(0.5)
                assert all(_runs(child) for child in children)  # without the fork server the other would end a little later
            trainer.stdin.close()
        assert trainer.wait(30) == (-signal.SIGKILL if end == "killed" else 0)
        deadline = time.monotonic() + 30
        while any(_runs(child) for child in children):
            assert time.monotonic() < deadline, "loader processes outlive their trainer"
            time.sleep(0.05)
    finally:
        os.killpg(trainer.pid, signal.SIGKILL)
        trainer.stdout.close()
        trainer.wait()


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
