"""ResNet features, what is frozen while it trains, and ImageNet weights without a network."""

import urllib.error

import pytest
import torch
import torchvision

from tood.backbone import Backbone, load_imagenet
from tood.config import BackboneConfig
from tood.errors import CheckpointError

STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


def train_one_step(config: BackboneConfig) -> tuple[dict, dict]:
    """State before and after one step of SGD in train mode."""
    torch.manual_seed(0)
    backbone = Backbone(config).train()
    for name, parameter in backbone.named_parameters():
        if name.endswith("bn2.weight"):  # starts at 0 and would hide the convolutions behind it
            torch.nn.init.ones_(parameter)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    loss = sum(c.square().mean() for c in backbone(torch.randn(2, 3, 64, 64)))
    if config.frozen_stages < 4:  # else nothing is left to train
        loss.backward()
        torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1).step()
    return before, backbone.state_dict()


@pytest.mark.parametrize(("depth", "channels"), [(18, (128, 256, 512)), (50, (512, 1024, 2048))])
def test_c3_to_c5_have_strides_8_16_32(depth, channels):
    backbone = Backbone(BackboneConfig(depth=depth)).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)]
    assert backbone.channels == channels


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_parameter_names_are_torchvisions(depth):
    with torch.device("meta"):
        ours, theirs = Backbone(BackboneConfig(depth=depth)), getattr(torchvision.models, f"resnet{depth}")()
    shapes = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes


@pytest.mark.parametrize("frozen", [0, 1, 2, 4])
def test_frozen_stages_do_not_change_and_the_others_do(frozen):
    before, after = train_one_step(BackboneConfig(depth=18, frozen_stages=frozen, norm_eval=False))
    still = STAGES[: frozen + 2] if frozen else ()
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith(still), name  # statistics too


def test_norm_eval_keeps_statistics_and_still_trains_the_affine_weights():
    before, after = train_one_step(BackboneConfig(depth=18, frozen_stages=1, norm_eval=True))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if "running" in name or "batches" in name]
    assert {"layer2.0.bn1.weight", "layer4.1.bn2.bias", "layer2.0.conv1.weight"} <= changed


def test_evaluation_and_training_alternate_without_thawing():
    backbone = Backbone(BackboneConfig(depth=18, frozen_stages=2, norm_eval=False))
    backbone.eval()
    backbone.train()
    assert not backbone.bn1.training
    assert not backbone.layer2[1].bn2.training
    assert backbone.layer3[0].bn1.training


def test_from_random_weights_each_block_starts_as_the_identity():
    block = Backbone(BackboneConfig(depth=18)).eval().layer1[0]
    x = torch.rand(1, 64, 8, 8)
    assert torch.equal(block(x), x)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's folder of downloaded weights, empty, and no way to download."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(url, *args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_without_network_or_cache_the_error_says_which_file_goes_where(cache):
    with pytest.raises(CheckpointError, match=r"ResNet-18.*no route to host.*resnet18-f37072fd\.pth into \$TORCH_HOME/hub"):
        load_imagenet(Backbone(BackboneConfig(depth=18)), 18)


def test_cached_weights_are_loaded_without_a_network(cache):
    torch.manual_seed(1)
    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), cache / "resnet18-f37072fd.pth")
    backbone = Backbone(BackboneConfig(depth=18))
    load_imagenet(backbone, 18)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


class Payload:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_in_the_cache_is_refused_and_not_run(cache, tmp_path):
    torch.save({"conv1.weight": Payload(str(tmp_path / "ran"))}, cache / "resnet18-f37072fd.pth")
    with pytest.raises(CheckpointError, match="ResNet-18"):
        load_imagenet(Backbone(BackboneConfig(depth=18)), 18)
    assert not (tmp_path / "ran").exists()
