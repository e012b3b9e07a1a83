"""Files that would run something when they are unpickled."""

import os
import shutil
from collections.abc import Callable
from typing import Any

from tests.bad_inputs.hostile.ground import PAYLOADS, Attack, Ground, System, bare_pickle, data_section, every, imported, put
from tests.bad_inputs.torch_files import repacked, saved


def _state(ground: Ground, payload: type, as_zip: bool) -> bytes:
    evil = payload(ground.command)
    content = {
        "state_dict": {"bbox_head.tood_cls.weight": evil, "x": [evil, {"y": (evil,)}]},
        "meta": {"cfg": evil, "CLASSES": [evil]},
    }
    return saved(content, as_zip)


def _load(name: str, content: Callable[[Ground], bytes]) -> Callable[[Ground], Any]:
    """As a model, at each door that takes one."""

    def attempt(ground: Ground) -> None:
        from pipeline.config import experiment_of
        from pipeline.site import prepare
        from tood.checkpoint import load_checkpoint, load_model
        from tood.trained import load

        folder = shutil.copytree(ground.sound / "checkpoint", ground.inside / "m")
        path = put(ground, f"m/{name}", content(ground))
        values = {"data": data_section(ground), "output": str(ground.inside / "runs")}
        doors = (
            lambda: load_model(path),
            lambda: load_model(folder),
            lambda: load_checkpoint(folder),
            lambda: load(path),
            lambda: prepare(experiment_of(values | {"init": str(path)})),
        )
        every(doors)

    return attempt


def _weights_of_torchvision(ground: Ground) -> None:
    from tood.backbone import Backbone, load_imagenet
    from tood.config import BackboneConfig

    put(ground, "torch/hub/checkpoints/resnet18-f37072fd.pth", saved(System(ground.command)))
    before = os.environ.get("TORCH_HOME")
    os.environ["TORCH_HOME"] = str(ground.inside / "torch")
    try:
        config = BackboneConfig(depth=18)
        load_imagenet(Backbone(config), config)
    finally:
        os.environ.pop("TORCH_HOME")
        os.environ.update({} if before is None else {"TORCH_HOME": before})


def _as_other_files(ground: Ground) -> None:
    """A pickle where JSON, an image, a label or a configuration is expected."""
    from pipeline.experiment_files import load_values
    from pipeline.jobs.profiles import find_cluster
    from tood.data.coco import read_coco
    from tood.data.decoding import decode
    from tood.recipe import read_recipe
    from tood.results import read_results

    evil = bare_pickle(ground)
    doors = (
        lambda: read_results(put(ground, "x.json", evil)),
        lambda: read_coco(put(ground, "y.json", evil), ground.inside),
        lambda: read_recipe(put(ground, "z.json", evil)),
        lambda: decode(put(ground, "x.png", evil)),
        lambda: load_values(str(put(ground, "x.yaml", evil))),
        lambda: find_cluster("lab", str(put(ground, "c.yaml", evil))),
    )
    every(doors)


PICKLES = {
    **{
        f"pickle-{payload.__name__.lower()}-{form}": Attack(
            f"a state dict in a {form} with a pickle of {payload.__name__.lower()} deep in it",
            imported(lambda ground, payload=payload, form=form: _state(ground, payload, form == "zip")),
        )
        for payload in PAYLOADS
        for form in ("zip", "stream")
    },
    "pickle-bare": Attack("a bare pickle by a checkpoint's name", imported(bare_pickle)),
    "pickle-as-safetensors-import": Attack("a pickle by a safetensors file's name, imported", imported(bare_pickle, "x.safetensors")),
    "pickle-as-model-pth": Attack("a pickle as a model's file .pth", _load("x.pth", bare_pickle)),
    "pickle-as-model-zip": Attack("a file of torch.save as a model's file .ckpt", _load("x.ckpt", lambda g: saved(System(g.command)))),
    "pickle-as-weights": Attack("a pickle in place of a model's weights", _load("model/model.safetensors", bare_pickle)),
    "pickle-as-state": Attack("a pickle in place of a training's state", _load("training.safetensors", bare_pickle)),
    "pickle-as-manifest": Attack("a pickle in place of a manifest", _load("manifest.json", bare_pickle)),
    "pickle-as-imagenet": Attack("a pickle in place of torchvision's weights in torch's cache", _weights_of_torchvision),
    "pickle-as-others": Attack("a pickle in place of JSON, YAML and an image", _as_other_files),
    "script": Attack("TorchScript, which is code", imported(lambda g: repacked({"constants.pkl": b"N.", "code/__torch__.py": b"import os"}))),
}  # fmt: skip
