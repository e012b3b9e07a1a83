"""ResNet and ResNeXt on torchvision's blocks, with deformable and frozen stages and frozen BatchNorm; C2..C5 come out."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from tood.config import BackboneConfig
from tood.deformable import ModulatedDeformableConv
from tood.errors import CheckpointError, ConfigError

_DEFORMABLE = {"none": (), "c4-c5": ("layer3", "layer4"), "c3-c5": ("layer2", "layer3", "layer4")}  # of `dcn`


class Backbone(nn.Module):
    """images [B, 3, H, W] -> (C2, C3, C4, C5) with strides 4, 8, 16, 32. Parameter names are torchvision's.

    `pixels` says what images it reads: an argument of tood.data.batches.normalise.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        from torchvision import models  # here: it brings torch's compiler, a second of every process that computes nothing

        # The last BatchNorm of each block starts at 0, so that from random weights every block starts as the identity.
        net = getattr(models, config.network)(zero_init_residual=True)
        self.conv1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = map(_stage, (net.layer1, net.layer2, net.layer3, net.layer4))
        stages = [self.layer1, self.layer2, self.layer3, self.layer4]
        if config.style == "caffe":
            for stage in stages:
                _halve_early(stage[0])
        for name in _DEFORMABLE[config.dcn]:
            for block in getattr(self, name):
                block.conv2 = _deformable(block.conv2)
        self.channels = tuple(net.fc.in_features // k for k in (8, 4, 2, 1))
        self.pixels = config.pixels
        self._fold_norms = False
        self.norm_eval = config.norm_eval
        if not config.train_norm:
            for norm in self._norms():
                norm.requires_grad_(False)
        self._frozen = [self.conv1, self.bn1, *stages[: config.frozen_stages]] if config.frozen_stages else []
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for module in self._frozen:
            module.eval()
        if self.norm_eval:
            for norm in self._norms():
                norm.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c2 = self.layer1(self.maxpool(torch.relu_(conv_norm(images, self.conv1, self.bn1, self._fold_norms))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def fold_norms(self) -> None:
        """Norms with constant statistics go into the convolutions in every training from now on (`conv_norm`)."""
        self._fold_norms = True
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.fold_norms = True

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]


class ResidualBlock(nn.Module):
    """torchvision's block of two or three convolutions, its parameters under their names; norms are folded where they can be."""

    def __init__(self, block: nn.Module):
        super().__init__()
        names = [name for name, _ in block.named_children()]
        self._convolutions = len([name for name in names if name.startswith("conv")])
        for i in range(1, self._convolutions + 1):
            self.add_module(f"conv{i}", block.get_submodule(f"conv{i}"))
            self.add_module(f"bn{i}", block.get_submodule(f"bn{i}"))
        self.downsample = block.downsample
        self.fold_norms = False  # see `conv_norm`

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self._convolutions + 1):
            out = conv_norm(out, getattr(self, f"conv{i}"), getattr(self, f"bn{i}"), self.fold_norms)
            if i < self._convolutions:
                out = torch.relu_(out)
        return torch.relu_(out.add_(x if self.downsample is None else conv_norm(x, *self.downsample, self.fold_norms)))


def conv_norm(x: Tensor, conv: nn.Module, norm: nn.BatchNorm2d, always: bool = False) -> Tensor:
    """norm(conv(x)). Where the norm's statistics are constants it goes into the convolution's weights and bias:

    w' = w gamma / sqrt(var + eps), b' = beta - mean gamma / sqrt(var + eps). Gradients of w, gamma and beta are those of the two
    apart; but the map is written once, and nothing of it has to be kept for the norm. Not so

    - in training in float32 unless `always`: it rounds otherwise than the peer, whose runs ours could then not be held against;
    - where weights that learn outnumber the map: folding them, there and back, would cost more than the norm;
    - while a program is exported: its runtime folds for good.
    """
    learning = torch.is_grad_enabled()
    wanted = always or not learning or torch.is_autocast_enabled(x.device.type)
    if not wanted or norm.training or not isinstance(conv, nn.Conv2d) or torch.compiler.is_exporting():
        return norm(conv(x))
    cells = x.shape[0] * x.shape[2] * x.shape[3] / math.prod(conv.stride)
    if learning and conv.weight.requires_grad and conv.weight[0].numel() > cells:
        return norm(conv(x))
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = torch.addcmul(norm.bias, norm.running_mean, factor, value=-1)
    return conv2d(x, conv.weight * factor.view(-1, 1, 1, 1), bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _stage(blocks: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(block) for block in blocks))


def _halve_early(block: nn.Module) -> None:
    """Move the stride of a stage's first block from its 3x3 convolution to the 1x1 before it; parameters do not change."""
    block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _deformable(conv: nn.Conv2d) -> ModulatedDeformableConv:
    return ModulatedDeformableConv(conv.in_channels, conv.out_channels, stride=conv.stride[0], groups=conv.groups)


def load_imagenet(backbone: Backbone, config: BackboneConfig) -> None:
    """Load torchvision's ImageNet weights (its V1 set: for ResNets what the papers used), all but the offsets of deformable stages.

    Raises ConfigError for a backbone that such weights do not fit, and CheckpointError when they are neither in torch's cache
    nor to be downloaded.
    """
    from torchvision.models import get_model_weights

    for key, only in (("style", "pytorch"), ("pixels", "rgb")):
        if getattr(config, key) != only:
            raise ConfigError(
                f"init=imagenet: torchvision has no weights for backbone.{key}={getattr(config, key)}; "
                f"set init=FILE with weights that were trained so, or backbone.{key}={only}"
            )
    weights = get_model_weights(config.network).IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # URLError, HTTPError, OSError, RuntimeError for a wrong hash: one cause for the user
        raise CheckpointError(
            f"init=imagenet: torchvision could not download the weights of {config.network} ({error}); put "
            f"{weights.url.rsplit('/', 1)[-1]} into $TORCH_HOME/hub/checkpoints, or set init=none or init=FILE"
        ) from error
    offsets = {key: value for key, value in backbone.state_dict().items() if ".conv_offset." in key}  # stay as they are
    backbone.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")} | offsets)
