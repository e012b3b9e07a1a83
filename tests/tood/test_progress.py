"""The lines that a training run prints."""

import pytest

from tood.progress import StepReport

METRICS = {"train/loss": 1.5, "train/loss_cls": 1.0, "train/loss_box": 0.5, "train/lr": 0.01, "perf/images_per_second": 20.0}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.9, "00:00:00"), (3725.5, "01:02:05"), (86_399, "23:59:59"), (30 * 3600, "30:00:00"), (500 * 3600 + 61, "500:01:01")],
)
def test_the_time_left_goes_on_past_a_day(seconds, said):
    line = StepReport(epoch=1, step=12, steps_per_epoch=10, metrics=METRICS, seconds_left=seconds).line(epochs=3)
    assert line == f"epoch 2/3 step 2/10 loss 1.5000 cls 1.0000 box 0.5000 lr 1.00e-02 img/s 20.0 eta {said}"
