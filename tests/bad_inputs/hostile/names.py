"""Names and links that lead out of their folder."""

import hashlib
import json
import shutil
from collections.abc import Callable
from typing import Any

from tests.bad_inputs.hostile.ground import Attack, Ground, every, imported
from tests.bad_inputs.images import encoded
from tests.bad_inputs.models import rewritten


def _linked_store(ground: Ground) -> None:
    """Folders of a store that are links to elsewhere."""
    from pipeline.storage.folder import FolderStore

    outside = ground.trap.parent

    def door(link: str, act: Callable[[FolderStore], Any]) -> Callable[[], Any]:
        def attempt() -> None:
            root = ground.inside / f"store-{link.strip('.')}"
            root.mkdir()
            (root / link).symlink_to(outside)
            act(FolderStore(root))

        return attempt

    name = ground.trap.name
    doors = (
        door("checkpoints", lambda store: store.put_bytes(f"checkpoints/{name}", b"x")),
        door("models", lambda store: store.swap_pointer(f"models/{name}", b"x", None)),
        door(".incoming", lambda store: store.put_bytes("a", b"x")),
        door(".locks", lambda store: store.swap_pointer("a", b"x", None)),
    )
    every(doors)


def _manifest_names(ground: Ground) -> None:
    """Models in a store whose manifests name files elsewhere, absolute, by `..` and by links."""
    from pipeline.storage.checkpoints import fetch_url

    def door(number: int, name: str, link: bool = False) -> Callable[[], Any]:
        def attempt() -> None:
            folder = shutil.copytree(ground.sound / "model", ground.inside / f"stored{number}")
            values = json.loads((folder / "manifest.json").read_text())
            values["files"][name] = {"sha256": hashlib.sha256(b"secret").hexdigest(), "size": 6}
            if link:
                (folder / name).symlink_to(ground.sound / "tiny.yaml")
                content = (ground.sound / "tiny.yaml").read_bytes()
                values["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            (folder / "manifest.json").write_text(json.dumps(values))
            fetch_url(str(folder), ground.inside / f"pulled{number}")

        return attempt

    every((door(0, str(ground.trap)), door(1, f"../../{ground.trap.name}"), door(2, "linked", link=True)))
    assert not list(ground.inside.glob("pulled*"))


def _tensor_names(ground: Ground) -> None:
    """Tensors, classes and recipes whose names are paths; then everything that makes files of a model is done with it."""
    import torch
    from safetensors.torch import save

    from tood.trained import load

    folder = shutil.copytree(ground.sound / "detector", ground.inside / "m")
    rewritten(folder, names=[str(ground.trap), "../../x", "<script>"])
    load(folder, "cpu").predict([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    names = {f"../../{ground.trap.name}": torch.ones(2), str(ground.trap): torch.ones(2)}
    imported(lambda _: save(names), "x.safetensors")(ground)


def _annotated_names(ground: Ground) -> None:
    """Images named outside, absolute, by `..` and through a link, in a folder and at an address."""
    from pipeline.config import CacheConfig
    from pipeline.data.cache import local_data
    from pipeline.data.room import leave_all
    from tests.web import web_server
    from tood.config import DataConfig, SplitConfig
    from tood.data.coco import read_coco

    ground.trap.parent.joinpath("secret.png").write_bytes(encoded("PNG"))
    served = ground.inside / "served"
    (served / "train").mkdir(parents=True)
    (served / "train/link").symlink_to(ground.trap.parent)
    found = []

    def door(name: str, remote: bool) -> Callable[[], Any]:
        content = json.loads((ground.sound / "data/train.json").read_text())
        content["images"] = [content["images"][0] | {"file_name": name}]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]

        def attempt() -> None:
            (served / "train.json").write_text(json.dumps(content))
            if not remote:
                found.append(read_coco(served / "train.json", served / "train"))
                return
            try:
                with web_server(served) as server:
                    data = DataConfig(root=server.url, train=SplitConfig("train.json", "train"))
                    local_data(data, CacheConfig(str(ground.inside / "cache")), ["train"], say=lambda line: None)
                    found.append(name)
            finally:
                leave_all()

        return attempt

    outside = ground.trap.parent / "secret.png"
    names = (str(outside), f"../../../{outside.parent.name}/secret.png", "link/secret.png")
    every((*(door(name, False) for name in names), *(door(name, True) for name in names[:2])))
    assert not found, f"{found} was read"


NAMES = {
    "store-links": Attack("folders of a store that are links to elsewhere", _linked_store),
    "manifest-names": Attack("stored models that name files elsewhere", _manifest_names),
    "tensor-names": Attack("tensors and classes whose names are paths", _tensor_names),
    "annotated-names": Attack("images outside of their folder", _annotated_names),
}  # fmt: skip
