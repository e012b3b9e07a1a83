"""What moves the weights: learning rate as a function of the step, optimizer, averaged weights, and their exact state."""

import bisect
import math

import torch
from torch import Tensor, nn

from tood.config import TrainConfig


def base_rate(config: TrainConfig) -> float:
    """The recipe's learning rate, scaled linearly from its own batch size to the one in use."""
    return config.lr * (config.batch_size / config.lr_batch_size if config.scale_lr else 1.0)


def describe_rate(config: TrainConfig) -> str:
    """How the learning rate came about, in a line."""
    if config.batch_size == config.lr_batch_size:
        return f"learning rate {config.lr:g} at {config.batch_size} images a step"
    if not config.scale_lr:
        return f"learning rate {config.lr:g} as given, not scaled to {config.batch_size} images a step (train.scale_lr=false)"
    return (
        f"learning rate {base_rate(config):g}: the recipe's {config.lr:g} for {config.lr_batch_size} images a step, scaled to "
        f"{config.batch_size} (train.scale_lr=false keeps it)"
    )


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step (from 0): warm-up by step over steps by epoch, or over a cosine by step."""
    if config.schedule == "step":
        factor = config.gamma ** bisect.bisect_right(config.milestones, step // steps_per_epoch)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * min(step / (config.epochs * steps_per_epoch), 1.0)))
    if step < config.warmup_steps:
        done = step / max(config.warmup_steps - 1, 1) if config.warmup == "linear" else 0.0
        factor *= config.warmup_factor + (1 - config.warmup_factor) * done
    return base_rate(config) * factor


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW on every trainable parameter, with weight decay on norms and biases too, as the peer's recipe has it.

    `set_rate` moves the rate of its groups. Biases of convolutions are a group of their own where the recipe treats them apart.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    apart = _convolution_biases(model) & trained.keys() if (config.bias_lr, config.bias_decay) != (1, 1) else set()
    groups = [{"params": [p for name, p in trained.items() if name not in apart], "factor": 1.0}]
    if apart:
        decay = config.weight_decay * config.bias_decay
        biases = [p for name, p in trained.items() if name in apart]
        groups.append({"params": biases, "factor": config.bias_lr, "weight_decay": decay})
    shared = {"lr": base_rate(config), "weight_decay": config.weight_decay, "fused": True}  # reads and writes each weight once
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **shared)
    return torch.optim.SGD(groups, momentum=config.momentum, **shared)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def _convolution_biases(model: nn.Module) -> set[str]:
    """The biases but those of norms, and of what predicts a deformable convolution's offsets."""
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)}
    biases = {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"}
    return {name for name in biases if name.rpartition(".")[0] not in norms and ".conv_offset." not in f".{name}"}


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What the optimizer remembers, as "optimizer.<what>.<parameter>"; empty before the first step."""
    remembered = {}
    for name, parameter in model.named_parameters():
        for what, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                remembered[f"optimizer.{what}.{name}"] = value
    return remembered


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, what, name = key.split(".", 2)
            own = parameters[name]  # a fused step walks through memory, so its tensors have to lie as the parameter does
            like = torch.empty_like(own) if value.ndim else torch.empty((), device=own.device)
            optimizer.state[own][what] = like.copy_(value)


class AveragedWeights:
    """Exponential moving average of all floating tensors of a model; decay ramps up as (1 + step) / (10 + step)."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        current = model.state_dict()
        floating = [name for name, t in self.tensors.items() if t.is_floating_point()]
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self.tensors[n] for n in floating], [current[n] for n in floating], weight)
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                tensor.copy_(current[name])

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
