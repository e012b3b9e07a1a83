"""ResNet-18/34/50/101 on torchvision's blocks, with frozen stages and frozen BatchNorm statistics; C3..C5 come out."""

import torchvision.models
from torch import Tensor, nn

from tood.config import BackboneConfig
from tood.errors import CheckpointError


class Backbone(nn.Module):
    """images [B, 3, H, W] -> (C3, C4, C5) with strides 8, 16, 32. Parameter names are torchvision's."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        # The last BatchNorm of each block starts at 0, so that from random weights every block starts as the identity.
        net = _resnet(config.depth)(zero_init_residual=True)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.channels = tuple(net.fc.in_features // k for k in (4, 2, 1))
        self.norm_eval = config.norm_eval
        stages = [self.layer1, self.layer2, self.layer3, self.layer4]
        self._frozen = [self.conv1, self.bn1, *stages[: config.frozen_stages]] if config.frozen_stages else []
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for module in self._frozen:
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        c3 = self.layer2(x)
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)


def load_imagenet(backbone: Backbone, depth: int) -> None:
    """Load torchvision's ImageNet weights (its V1 set, which the papers used).

    Raises CheckpointError when they are neither in torch's cache nor to be downloaded.
    """
    weights = torchvision.models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # URLError, HTTPError, OSError, RuntimeError for a wrong hash: one cause for the user
        raise CheckpointError(
            f"init=imagenet: torchvision could not download the ResNet-{depth} weights ({error}); put "
            f"{weights.url.rsplit('/', 1)[-1]} into $TORCH_HOME/hub/checkpoints, or set init=none or init=FILE"
        ) from error
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    backbone.load_state_dict(state)


def _resnet(depth: int):
    return getattr(torchvision.models, f"resnet{depth}")
