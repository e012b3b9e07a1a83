"""What a training run says of itself while it runs."""

from dataclasses import dataclass
from pathlib import Path

from tood.evaluation import Figures
from tood.results import Detections


def as_hours(seconds: float) -> str:
    """HH:MM:SS, whose hours go on past a day, where a clock's start anew."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


@dataclass(frozen=True)
class StepReport:
    """Sent by rank 0 every `log_every` steps: means since the last report."""

    epoch: int  # from 0
    step: int  # steps done since the start of training
    steps_per_epoch: int
    metrics: dict[str, float]  # train/loss, train/loss_cls, train/loss_box, ..., train/lr, perf/images_per_second
    seconds_left: float

    def line(self, epochs: int) -> str:
        m = self.metrics
        done = self.step - self.epoch * self.steps_per_epoch
        left = as_hours(self.seconds_left)
        memory = f" mem {m['perf/gpu_memory_gb']:.1f}G" if "perf/gpu_memory_gb" in m else ""
        losses = " ".join(f"{k.removeprefix('train/loss_')} {v:.4f}" for k, v in m.items() if k.startswith("train/loss_"))
        return (
            f"epoch {self.epoch + 1}/{epochs} step {done}/{self.steps_per_epoch} loss {m['train/loss']:.4f} "
            f"{losses} lr {m['train/lr']:.2e} "
            f"img/s {m['perf/images_per_second']:.1f} eta {left}{memory}"
        )


@dataclass(frozen=True)
class EpochReport:
    """Sent on every rank after each epoch; `figures` and `checkpoint` exist on rank 0 alone."""

    epoch: int
    step: int
    metrics: dict[str, float]  # val/AP, val/AP50, ..., perf/epoch_seconds; empty but on rank 0
    figures: Figures | None
    detections: Detections | None
    checkpoint: Path | None
    last: bool  # of the recipe's, or because the run ends early
    ends_early: str = ""  # why, where it does


@dataclass(frozen=True)
class CheckpointReport:
    """Sent on every rank after a checkpoint within an epoch; it exists on rank 0 alone."""

    epoch: int  # from 0, under way
    step: int
    checkpoint: Path | None
    stops: bool  # training ends here, as it was told to
