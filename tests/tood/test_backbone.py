"""Features of ResNets and ResNeXts, what is frozen while they train, and ImageNet weights without a network."""

import urllib.error

import pytest
import torch
import torch.nn.functional as F
import torchvision

from tood.backbone import Backbone, load_imagenet
from tood.config import NETWORKS, BackboneConfig, build
from tood.deformable import ModulatedDeformableConv
from tood.errors import CheckpointError, ConfigError

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


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        (BackboneConfig(depth=18), (64, 128, 256, 512)),
        (BackboneConfig(depth=50), (256, 512, 1024, 2048)),
        (BackboneConfig(depth=50, style="caffe", dcn="c3-c5"), (256, 512, 1024, 2048)),
        (BackboneConfig(depth=50, groups=32, width_per_group=4, dcn="c4-c5"), (256, 512, 1024, 2048)),
    ],
)
def test_c2_to_c5_have_strides_4_8_16_32(config, channels):
    backbone = Backbone(config).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 96))
    sizes = [(c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)]
    assert [tuple(f.shape[1:]) for f in features] == sizes
    assert backbone.channels == channels


@pytest.mark.parametrize(("parts", "name"), NETWORKS.items(), ids=NETWORKS.values())
def test_parameter_names_are_torchvisions(parts, name):
    depth, groups, width_per_group = parts
    with torch.device("meta"):
        ours = Backbone(build(BackboneConfig, {"depth": depth, "groups": groups, "width_per_group": width_per_group}))
        theirs = getattr(torchvision.models, name)()
    shapes = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes


R101_DCN = BackboneConfig(depth=101, dcn="c3-c5")
X101 = BackboneConfig(depth=101, groups=64, width_per_group=4)
X101_DCN = BackboneConfig(depth=101, groups=64, width_per_group=4, dcn="c4-c5")


@pytest.mark.parametrize(
    ("config", "parameters", "trained"),
    [
        (BackboneConfig(depth=50), 23_508_032, 23_282_688),
        (BackboneConfig(depth=50, style="caffe", train_norm=False), 23_508_032, 23_232_512),
        (BackboneConfig(depth=101), 42_500_160, 42_274_816),
        (R101_DCN, 44_429_418, 44_204_074),
        (X101, 81_406_272, 81_003_520),
        (X101_DCN, 88_623_102, 88_220_350),
    ],
)
def test_parameters_are_as_many_as_in_mmdetections_networks(config, parameters, trained):
    with torch.device("meta"):
        backbone = Backbone(config)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == trained


@pytest.mark.parametrize(("config", "stages"), [(R101_DCN, ("layer2", "layer3", "layer4")), (X101_DCN, ("layer3", "layer4"))])
def test_deformable_stages_add_the_offsets_of_each_3x3_and_keep_the_rest(config, stages):
    with torch.device("meta"):
        backbone, plain = Backbone(config), Backbone(build(BackboneConfig, {**vars(config), "dcn": "none"}))
    shapes, added = {k: v.shape for k, v in plain.state_dict().items()}, {}
    for name, module in plain.named_modules():
        if name.startswith(stages) and name.endswith("conv2"):
            added |= {f"{name}.conv_offset.weight": (27, module.in_channels, 3, 3), f"{name}.conv_offset.bias": (27,)}
            assert isinstance(backbone.get_submodule(name), ModulatedDeformableConv)
            assert backbone.get_submodule(name).stride == module.stride[0]
    assert {k: v.shape for k, v in backbone.state_dict().items()} == shapes | added


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
@pytest.mark.parametrize("dcn", ["none", "c3-c5"])
def test_a_stage_halves_its_map_in_the_3x3_or_before_it(style, dcn):
    torch.manual_seed(0)
    block = Backbone(BackboneConfig(depth=50, style=style, dcn=dcn)).eval().layer2[0]
    torch.nn.init.ones_(block.bn3.weight)
    x = torch.randn(1, 256, 7, 6)
    early, late = (2, 1) if style == "caffe" else (1, 2)
    half = 1 if dcn == "none" else 0.5  # fresh offsets are 0, fresh masks 1/2
    y = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=early)))
    y = F.relu(block.bn2(F.conv2d(y, block.conv2.weight * half, stride=late, padding=1)))
    y = F.relu(block.bn3(F.conv2d(y, block.conv3.weight)) + block.downsample(x))
    with torch.no_grad():
        torch.testing.assert_close(block(x), y)
    assert y.shape[2:] == (4, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 101, "groups": 64}, "groups: depth=101 groups=64 width_per_group=64 is no network here; set .*groups=64 width"),
        ({"depth": 18, "groups": 32, "width_per_group": 4}, "set depth=18 groups=1 width_per_group=64"),
        ({"depth": 50, "width_per_group": 4}, "is no network here"),
        ({"depth": 34, "style": "caffe"}, "style: 'caffe' needs blocks of three convolutions.*set style=pytorch or depth=50"),
        ({"depth": 18, "dcn": "c3-c5"}, "dcn: 'c3-c5' needs blocks of three"),
        ({"dcn": "c3"}, "dcn: 'c3' is not one of none, c3-c5, c4-c5"),
    ],
)
def test_what_is_no_network_is_an_error(values, message):
    with pytest.raises(ConfigError, match=message):
        build(BackboneConfig, values)


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


def test_without_train_norm_the_affine_weights_stay_too():
    before, after = train_one_step(BackboneConfig(depth=18, frozen_stages=1, norm_eval=True, train_norm=False))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.rsplit(".", 2)[1] for name in changed} <= {"conv1", "conv2", "0"}  # 0: a downsample's convolution
    assert {"layer2.0.conv1.weight", "layer3.0.downsample.0.weight"} <= changed


@pytest.fixture
def norms(monkeypatch) -> list[int]:
    """The channels of every BatchNorm that is computed for itself."""
    computed, forward = [], torch.nn.BatchNorm2d.forward
    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", lambda norm, x: computed.append(norm.num_features) or forward(norm, x))
    return computed


def lively_backbone(**config) -> Backbone:
    """Norms far from the identity they start as."""
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(**config))
    for norm in backbone._norms():
        for values, low, high in ((norm.weight, 0.5, 1), (norm.bias, -1, 1), (norm.running_mean, -1, 1), (norm.running_var, 1, 4)):
            torch.nn.init.uniform_(values, low, high)
    return backbone


@pytest.mark.parametrize(("depth", "side"), [(18, 256), (50, 160)])
def test_constant_norms_in_the_convolutions_give_the_same_features_and_gradients(norms, depth, side):
    backbone, images = lively_backbone(depth=depth, frozen_stages=1).train(), torch.randn(1, 3, side, side)
    found = []
    for folds in (False, True):
        if folds:
            backbone.fold_norms()
        norms.clear()
        features = backbone(images)
        backbone.zero_grad(set_to_none=True)
        sum(c.square().mean() for c in features).backward()
        gradients = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
        found.append((features, gradients, list(norms)))
    apart, together = found
    assert len(apart[2]) == len(backbone._norms())
    assert 0 < len(together[2]) < len(apart[2])  # the last stage has more weights than cells
    assert {"layer2.0.bn1.weight", "layer2.0.bn1.bias", "layer2.0.conv1.weight"} <= together[1].keys() == apart[1].keys()
    for a, b in zip([*apart[0], *apart[1].values()], [*together[0], *together[1].values()], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4 * a.abs().max().item())


def test_norms_are_folded_in_evaluation_and_in_bf16_and_batch_statistics_never(norms):
    backbone, images = lively_backbone(depth=18, norm_eval=False).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        backbone(images)
        assert not norms
        backbone.train()(images)  # frozen: the stem and stage 1
        assert len(norms) == len(backbone._norms()) - 5
    norms.clear()
    backbone.norm_eval = True
    with torch.autocast("cpu", torch.bfloat16):
        backbone.train()(images)
    assert len(norms) < len(backbone._norms()) / 2 + 5
    assert 64 not in norms


def test_offsets_of_deformable_stages_train_unless_their_stage_is_frozen():
    backbone = Backbone(BackboneConfig(depth=50, dcn="c3-c5", frozen_stages=2))
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if "conv_offset" in name and p.requires_grad}
    assert trained == {"layer3", "layer4"}


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
    with pytest.raises(CheckpointError, match=r"resnet18.*no route to host.*resnet18-f37072fd\.pth into \$TORCH_HOME/hub"):
        load_imagenet(Backbone(BackboneConfig(depth=18)), BackboneConfig(depth=18))


def test_cached_weights_are_loaded_without_a_network(cache):
    torch.manual_seed(1)
    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), cache / "resnet18-f37072fd.pth")
    backbone = Backbone(BackboneConfig(depth=18))
    load_imagenet(backbone, BackboneConfig(depth=18))
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_resnexts_have_weights_of_their_own(cache):
    with torch.device("meta"):
        backbone = Backbone(X101_DCN)
    with pytest.raises(CheckpointError, match=r"resnext101_64x4d-173b62eb\.pth into"):
        load_imagenet(backbone, X101_DCN)


def test_deformable_stages_take_all_weights_but_their_offsets(monkeypatch):
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in torchvision.models.resnet50().state_dict().items()}
    weights = {name: torch.full(shape, 3.0) for name, shape in shapes.items()}
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: weights)
    config = BackboneConfig(depth=50, dcn="c4-c5")
    backbone = Backbone(config)
    load_imagenet(backbone, config)
    state = backbone.state_dict()
    assert len(state) == len(shapes) - 2 + 2 * 9  # without the classifier, with nine convolutions' offsets
    assert all((value == (0 if "conv_offset" in name else 3)).all() for name, value in state.items())


@pytest.mark.parametrize(("key", "value"), [("style", "caffe"), ("pixels", "bgr")])
def test_torchvision_has_no_weights_from_caffe(key, value):
    config = build(BackboneConfig, {key: value})
    with torch.device("meta"):
        backbone = Backbone(config)
    assert backbone.pixels == config.pixels
    with pytest.raises(ConfigError, match=rf"no weights for backbone\.{key}={value}; set init=FILE"):
        load_imagenet(backbone, config)


class Payload:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_in_the_cache_is_refused_and_not_run(cache, tmp_path):
    torch.save({"conv1.weight": Payload(str(tmp_path / "ran"))}, cache / "resnet18-f37072fd.pth")
    with pytest.raises(CheckpointError, match="resnet18"):
        load_imagenet(Backbone(BackboneConfig(depth=18)), BackboneConfig(depth=18))
    assert not (tmp_path / "ran").exists()
