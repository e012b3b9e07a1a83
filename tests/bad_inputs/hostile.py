"""Attacks: each would run something, or write somewhere, if what reads it did as it is told.

Whatever is run leaves `Ground.trap`; whatever is written must lie in `Ground.inside`. An attack may be refused or come to
nothing; that is for the corpus to say where it is an error.
"""

import builtins
import contextlib
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.bad_inputs.images import encoded
from tests.bad_inputs.models import rewritten
from tests.bad_inputs.packs import Shown, member, tar
from tests.bad_inputs.torch_files import repacked, saved
from tood.errors import ToodError


class Ground(NamedTuple):
    inside: Path  # where the attacked may write
    sound: Path
    trap: Path  # outside; nothing may ever make it

    @property
    def command(self) -> str:
        return f"touch {self.trap}"


class Attack(NamedTuple):
    what: str  # in one line
    attempt: Callable[[Ground], Any]


class System:
    """Its pickle runs a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Evaluated(System):
    """Its pickle evaluates Python."""

    def __reduce__(self):
        return builtins.eval, (f"__import__('os').system({self.command!r})",)


class Built(System):
    """Its pickle hands the command to a method by BUILD."""

    def __reduce__(self):
        return Opening, (), {"command": self.command}


class Opening:
    def __setstate__(self, state: dict) -> None:
        os.system(state["command"])


def springs(payload: object, trap: Path) -> bool:
    """Does the payload work, where somebody unpickles it? It has to, or nothing is proved."""
    pickle.loads(pickle.dumps(payload))
    worked = trap.exists()
    trap.unlink(missing_ok=True)
    return worked


PAYLOADS = (System, Evaluated, Built)


def put(ground: Ground, name: str, content: bytes) -> Path:
    path = ground.inside / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# -- pickles ---------------------------------------------------------------------------------------------------------


def _import(content: Callable[[Ground], bytes], name: str = "x.pth") -> Callable[[Ground], Any]:
    def attempt(ground: Ground) -> None:
        from pipeline.exchange import import_model

        path = put(ground, name, content(ground))
        import_model(path, ground.inside / "out", config=None, settings=[], classes=None, register=None)

    return attempt


def _state(ground: Ground, payload: type, as_zip: bool) -> bytes:
    evil = payload(ground.command)
    content = {
        "state_dict": {"bbox_head.tood_cls.weight": evil, "x": [evil, {"y": (evil,)}]},
        "meta": {"cfg": evil, "CLASSES": [evil]},
    }
    return saved(content, as_zip)


def _bare(ground: Ground) -> bytes:
    return pickle.dumps(System(ground.command))


def _load(name: str, content: Callable[[Ground], bytes]) -> Callable[[Ground], Any]:
    """As a model, at each door that takes one."""

    def attempt(ground: Ground) -> None:
        from pipeline.config import experiment_of
        from pipeline.site import prepare
        from tood.checkpoint import load_checkpoint, load_model
        from tood.trained import load

        folder = shutil.copytree(ground.sound / "checkpoint", ground.inside / "m")
        path = put(ground, f"m/{name}", content(ground))
        values = {"data": _data(ground), "output": str(ground.inside / "runs")}
        doors = (
            lambda: load_model(path),
            lambda: load_model(folder),
            lambda: load_checkpoint(folder),
            lambda: load(path),
            lambda: prepare(experiment_of(values | {"init": str(path)})),
        )
        every(doors)

    return attempt


def _data(ground: Ground) -> dict:
    root = str(ground.sound / "data")
    return {"root": root} | {s: {"annotations": f"{s}.json", "images": s} for s in ("train", "val")}


def every(doors: tuple[Callable[[], Any], ...]) -> None:
    """Try each; the last refusal is the attack's own."""
    refusal = None
    for door in doors:
        try:
            door()
        except ToodError as error:
            refusal = error
    if refusal:
        raise refusal


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
    from pipeline.config import load_values
    from pipeline.jobs.profiles import find_cluster
    from tood.data.coco import read_coco
    from tood.data.transforms import decode
    from tood.recipe import read_recipe
    from tood.results import read_results

    evil = _bare(ground)
    doors = (
        lambda: read_results(put(ground, "x.json", evil)),
        lambda: read_coco(put(ground, "y.json", evil), ground.inside),
        lambda: read_recipe(put(ground, "z.json", evil)),
        lambda: decode(put(ground, "x.png", evil)),
        lambda: load_values(str(put(ground, "x.yaml", evil))),
        lambda: find_cluster("lab", str(put(ground, "c.yaml", evil))),
    )
    every(doors)


# -- archives --------------------------------------------------------------------------------------------------------


def _slip(ground: Ground) -> bytes:
    """Every entry of a torch file under a name that leaves the folder, and the trap among them."""
    data = saved({"state_dict": {"x": __import__("torch").ones(3)}})
    with zipfile.ZipFile(io.BytesIO(data)) as sound:
        entries = {name: sound.read(name) for name in sound.namelist()}
    up = "../" * 12
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in entries.items():
            made.writestr(f"{up}{ground.trap.parent}/{name.partition('/')[2]}", content)
        made.writestr(f"{up}{ground.trap}", b"x")
        made.writestr(str(ground.trap), b"x")
    return buffer.getvalue()


def _slipping_key(ground: Ground) -> bytes:
    """A tensor whose memory is said to lie outside."""
    key = f"../../../..{ground.trap}"
    data = repacked({})
    with zipfile.ZipFile(io.BytesIO(data)) as sound:
        content = next(sound.read(name) for name in sound.namelist() if name.endswith("data.pkl"))
    old = b"X\x01\x00\x00\x000"  # the text "0"
    assert old in content
    return repacked({"data.pkl": content.replace(old, b"X" + len(key).to_bytes(4, "little") + key.encode())})


@contextlib.contextmanager
def _no_larger_than(size: int):
    """Any file that this process writes; more is an OSError, which stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(ToodError, match=r"is larger than|no file of its manifest"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def _shard(*members: Callable[[Ground], tuple[tarfile.TarInfo, bytes]]) -> Callable[[Ground], Any]:
    """A packed data set whose shard holds these members; its manifest lists train/a.png alone, and that in any size."""

    def attempt(ground: Ground) -> None:
        from pipeline.data.fetch import Fetch
        from pipeline.data.manifest import read_manifest
        from pipeline.data.room import Place as Room
        from pipeline.data.room import leave_all

        data = tar(*(make(ground) for make in members))
        name, served = f"shards/{hashlib.sha256(data).hexdigest()}.tar", ground.inside / "served"
        put(ground, f"served/{name}", data)
        files = {"train/a.png": [1, hashlib.sha256(b"x").hexdigest(), 0]}
        shards = [[name, len(data), hashlib.sha256(data).hexdigest()]]
        put(ground, "served/manifest.json", json.dumps({"format": "tood-data-1", "shards": shards, "files": files}).encode())
        source = Shown(served)
        try:
            room = Room(ground.inside / "cache", "key")
            with _no_larger_than(1 << 24):
                Fetch(source, read_manifest(source), room, 10**9, lambda line: None).bring(["train/a.png"])
        finally:
            leave_all()
            unpacked = [path.stat().st_size for path in (ground.inside / "cache/key/files").rglob("*") if path.is_file()]
            assert sum(unpacked) <= 1, f"{sum(unpacked)} bytes were kept of a file that should have one"

    return attempt


def _sparse(ground: Ground) -> tuple[tarfile.TarInfo, bytes]:
    """A file that lies in the archive as a few bytes, and unfolds to a thousand million of them."""
    info = tarfile.TarInfo("train/a.png")
    content = b"1\n0\n1\n".ljust(512, b"\0") + b"x" * 512
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": str(10**9),
        "GNU.sparse.name": "train/a.png",
    }
    info.size = len(content)
    return info, content


def _big(ground: Ground) -> tuple[tarfile.TarInfo, bytes]:
    return member("train/a.png", b"\0" * (4 << 20))


# -- names and links -------------------------------------------------------------------------------------------------


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
    _import(lambda _: save(names), "x.safetensors")(ground)


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


# -- text that asks to be run ----------------------------------------------------------------------------------------


def _yaml(text: Callable[[Ground], str]) -> Callable[[Ground], Any]:
    """A configuration, at each door that reads YAML."""

    def attempt(ground: Ground) -> None:
        from pipeline.config import experiment_of, load_values, parse_overrides
        from pipeline.jobs.profiles import find_cluster
        from pipeline.nightly.suite import read_suite
        from tood.data.convert_yolo import read_yaml

        value = text(ground)
        path = put(ground, "x/data.yaml", f"name: {value}\n".encode())
        doors = (
            lambda: experiment_of(load_values(str(path))),
            lambda: experiment_of(load_values("demo", [f"name={value}"])),
            lambda: parse_overrides([f"sweep.space={{train.lr: [{value}]}}"]),
            lambda: read_suite(str(path)),
            lambda: read_yaml(path.parent),
            lambda: find_cluster("lab", str(put(ground, "c.yaml", f"clusters: {{lab: {value}}}\n".encode()))),
        )
        every(doors)

    return attempt


def _resolver(ground: Ground) -> None:
    """A resolver that somebody registered, by whatever name, is not asked."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("trap", lambda: ground.trap.write_text("resolved"), replace=True)
    _yaml(lambda _: "'${trap:}'")(ground)


def _cluster(ground: Ground) -> None:
    """Secrets by command, and a profile whose words end in a shell."""
    from pipeline.cli import make_parser
    from pipeline.jobs.profiles import find_cluster
    from pipeline.jobs.submit import plan

    command = ground.command

    def door(number: int, lines: str) -> Callable[[], Any]:
        def attempt() -> None:
            text = f"clusters:\n  lab:\n    jobs: http://127.0.0.1:1\n    code: installed\n{lines}"
            cluster = find_cluster("lab", str(put(ground, f"c{number}.yaml", text.encode())))
            cluster.token()
            cluster.enter()
            submission = plan(make_parser(), ["train", "demo", f"name=a$({command})", f"description=`{command}`"], cluster)
            subprocess.run(["/bin/sh", "-c", submission.entrypoint], cwd=ground.inside, capture_output=True, check=False)

        return attempt

    work = ground.inside / "work"
    every(
        (
            door(0, f"    token: {{command: '{command}'}}\n"),
            door(1, f"    token: {{env: '$({command})'}}\n"),
            door(2, f"    token: {{file: '|{command}'}}\n"),
            door(3, f"    secrets: {{A: {{exec: '{command}'}}}}\n"),
            door(4, f'    folder: "{work}; {command} #"\n    python: /bin/true\n'),
            door(5, f'    folder: {work}\n    python: "true; {command} #"\n'),
            door(6, f'    folder: {work}\n    python: /bin/true\n    settings: {{tracking.experiment: "$({command})"}}\n'),
        )
    )


def _served_model(ground: Ground) -> None:
    """A version whose folder brings MLmodel, a loader and a pickle; whoever pulls gets weights and nothing is loaded."""
    from mlflow import MlflowClient

    from pipeline.registry.models import pull
    from pipeline.storage.checkpoints import read_manifest
    from pipeline.storage.folder import FolderStore

    folder = shutil.copytree(ground.sound / "model", ground.inside / "stored")
    uri = f"sqlite:///{ground.inside}/mlflow.db"
    shutil.copy(ground.sound / "mlflow.db", ground.inside / "mlflow.db")
    put(ground, "stored/code/evil.py", f"import os\nos.system({ground.command!r})\n".encode())
    flavor = "flavors: {python_function: {loader_module: evil, code: code, python_model: python_model.pkl}}"
    put(ground, "stored/MLmodel", flavor.encode())
    put(ground, "stored/python_model.pkl", _bare(ground))
    put(ground, "stored/requirements.txt", b"evil @ file:///tmp/evil\n")
    client = MlflowClient(uri, uri)
    digest = read_manifest(FolderStore(folder), "").digest
    version = client.create_model_version("known", folder.as_uri(), tags={"manifest_sha256": digest}).version
    pulled = pull(f"models:/known/{version}", uri, ground.inside / "pulled")
    assert sorted(path.name for path in pulled.rglob("*")) == ["manifest.json", "model.safetensors"]
    values = json.loads((folder / "manifest.json").read_text())
    loader = (folder / "code/evil.py").read_bytes()
    values["files"]["code/evil.py"] = {"sha256": hashlib.sha256(loader).hexdigest(), "size": len(loader)}
    (folder / "manifest.json").write_text(json.dumps(values))
    digest = read_manifest(FolderStore(folder), "").digest
    version = client.create_model_version("known", folder.as_uri(), tags={"manifest_sha256": digest}).version
    pull(f"models:/known/{version}", uri, ground.inside / "pulled2")


def _artifacts(ground: Ground) -> None:
    """A server of artifacts that names what it sends as it likes."""
    from pipeline.registry.files import _RunArtifacts
    from pipeline.storage.checkpoints import fetch
    from pipeline.tracking.access import explained
    from tests.bad_inputs.artifact_server import artifact_server

    names = [f"../../../../../../../../..{ground.trap}", str(ground.trap), "a/../../../trap", "%2e%2e/%2e%2e/trap"]

    def door(name: str) -> Callable[[], Any]:
        def attempt() -> None:
            with artifact_server(name) as address:
                place = _RunArtifacts(f"mlflow-artifacts://{address.removeprefix('http://')}/m", address)
                with explained("pull"):
                    fetch(place, "", ground.inside / "pulled")

        return attempt

    every(tuple(door(name) for name in names))


ATTACKS: dict[str, Attack] = {
    **{
        f"pickle-{payload.__name__.lower()}-{form}": Attack(
            f"a state dict in a {form} with a pickle of {payload.__name__.lower()} deep in it",
            _import(lambda ground, payload=payload, form=form: _state(ground, payload, form == "zip")),
        )
        for payload in PAYLOADS
        for form in ("zip", "stream")
    },
    "pickle-bare": Attack("a bare pickle by a checkpoint's name", _import(_bare)),
    "pickle-as-safetensors-import": Attack("a pickle by a safetensors file's name, imported", _import(_bare, "x.safetensors")),
    "pickle-as-model-pth": Attack("a pickle as a model's file .pth", _load("x.pth", _bare)),
    "pickle-as-model-zip": Attack("a file of torch.save as a model's file .ckpt", _load("x.ckpt", lambda g: saved(System(g.command)))),
    "pickle-as-weights": Attack("a pickle in place of a model's weights", _load("model/model.safetensors", _bare)),
    "pickle-as-state": Attack("a pickle in place of a training's state", _load("training.safetensors", _bare)),
    "pickle-as-manifest": Attack("a pickle in place of a manifest", _load("manifest.json", _bare)),
    "pickle-as-imagenet": Attack("a pickle in place of torchvision's weights in torch's cache", _weights_of_torchvision),
    "pickle-as-others": Attack("a pickle in place of JSON, YAML and an image", _as_other_files),
    "script": Attack("TorchScript, which is code", _import(lambda g: repacked({"constants.pkl": b"N.", "code/__torch__.py": b"import os"}))),
    "zip-slip": Attack("a torch file whose entries leave the folder", _import(_slip)),
    "zip-slip-key": Attack("a tensor whose memory lies at a path outside", _import(_slipping_key)),
    "tar-parent": Attack("a shard's member that leaves the folder", _shard(lambda g: member(f"../../../../../..{g.trap}"))),
    "tar-absolute": Attack("a shard's member by its absolute path", _shard(lambda g: member(str(g.trap)))),
    "tar-link": Attack("a link to elsewhere, then a file through it", _shard(lambda g: member("train", b"", tarfile.SYMTYPE, str(g.trap.parent)), lambda g: member(f"train/{g.trap.name}"))),
    "tar-link-by-name": Attack("a link by a listed file's name", _shard(lambda g: member("train/a.png", b"", tarfile.SYMTYPE, str(g.trap)))),
    "tar-hard-link": Attack("a hard link by a listed file's name", _shard(lambda g: member("train/a.png", b"", tarfile.LNKTYPE, str(g.sound / "tiny.yaml")))),
    "tar-device": Attack("a device by a listed file's name", _shard(lambda g: member("train/a.png", b"", tarfile.CHRTYPE))),
    "tar-pipe": Attack("a pipe by a listed file's name", _shard(lambda g: member("train/a.png", b"", tarfile.FIFOTYPE))),
    "tar-folder": Attack("a folder by a listed file's name", _shard(lambda g: member("train/a.png", b"", tarfile.DIRTYPE))),
    "tar-sparse": Attack("a member of a few bytes that unfolds to a thousand million", _shard(_sparse)),
    "tar-larger": Attack("a member four million times as large as its manifest says", _shard(_big)),
    "store-links": Attack("folders of a store that are links to elsewhere", _linked_store),
    "manifest-names": Attack("stored models that name files elsewhere", _manifest_names),
    "tensor-names": Attack("tensors and classes whose names are paths", _tensor_names),
    "annotated-names": Attack("images outside of their folder", _annotated_names),
    "yaml-apply": Attack("a tag that calls a function", _yaml(lambda g: f"!!python/object/apply:os.system ['{g.command}']")),
    "yaml-new": Attack("a tag that makes an object", _yaml(lambda g: f"!!python/object/new:subprocess.Popen [[touch, {g.trap}]]")),
    "yaml-module": Attack("a tag that imports a module", _yaml(lambda g: "!!python/module:tests.bad_inputs.springs")),
    "yaml-resolver-environment": Attack("a resolver that reads the environment", _yaml(lambda g: "'${oc.env:HOME}'")),
    "yaml-resolver-custom": Attack("a resolver that somebody registered", _resolver),
    "cluster-commands": Attack("secrets by command, and words that end in a shell", _cluster),
    "model-with-code": Attack("a registered version that brings code", _served_model),
    "artifact-names": Attack("a server whose artifacts leave the folder", _artifacts),
}  # fmt: skip
