"""Text, and folders, that ask to be run."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from tests.bad_inputs.hostile.ground import Attack, Ground, bare_pickle, every, put


def _yaml(text: Callable[[Ground], str]) -> Callable[[Ground], Any]:
    """A configuration, at each door that reads YAML."""

    def attempt(ground: Ground) -> None:
        from pipeline.config import experiment_of
        from pipeline.experiment_files import load_values, parse_overrides
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
    put(ground, "stored/python_model.pkl", bare_pickle(ground))
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


TEXTS = {
    "yaml-apply": Attack("a tag that calls a function", _yaml(lambda g: f"!!python/object/apply:os.system ['{g.command}']")),
    "yaml-new": Attack("a tag that makes an object", _yaml(lambda g: f"!!python/object/new:subprocess.Popen [[touch, {g.trap}]]")),
    "yaml-module": Attack("a tag that imports a module", _yaml(lambda g: "!!python/module:tests.bad_inputs.springs")),
    "yaml-resolver-environment": Attack("a resolver that reads the environment", _yaml(lambda g: "'${oc.env:HOME}'")),
    "yaml-resolver-custom": Attack("a resolver that somebody registered", _resolver),
    "cluster-commands": Attack("secrets by command, and words that end in a shell", _cluster),
    "model-with-code": Attack("a registered version that brings code", _served_model),
    "artifact-names": Attack("a server whose artifacts leave the folder", _artifacts),
}  # fmt: skip
