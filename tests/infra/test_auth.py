"""Whoever asks Ray or MLflow for anything, anywhere under infra/, has to say who it is; and no secret stands in a file there."""

import re
import shlex
from typing import Any

import pytest
import yaml

from infra.local import services, stack
from infra.local.processes import Service
from infra.local.stack import Stack
from tests.infra.manifests import INFRA, documents, of_kind, pods

SECRET = re.compile(r"(?i)(password|passwd|secret|token|access_key|api_key|secret_key)(_id)?$")
TOKEN = "RAY_AUTH_MODE=token"


def everything(value: Any, key: str):
    """Every value under `key`, however deep."""
    if isinstance(value, dict):
        yield from ([value[key]] if key in value else [])
        for inner in value.values():
            yield from everything(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from everything(inner, key)


def test_every_ray_cluster_asks_for_its_token():
    clusters = [(where, spec) for where, document in documents() for spec in everything(document, "headGroupSpec")]
    asking = [options for _, document in documents() for options in everything(document, "authOptions")]
    assert len(clusters) == len(asking) >= 3
    assert asking == [{"mode": "token"}] * len(asking)
    for where, document in documents():
        assert "RAY_AUTH_MODE=disabled" not in str(document), where
    commands = yaml.safe_load((INFRA / "aws/cluster.yaml").read_text())
    starts = [
        line for key in ("head_start_ray_commands", "worker_start_ray_commands") for line in commands[key] if "ray start" in line
    ]
    assert len(starts) == 2
    assert all(TOKEN in shlex.split(line) for line in starts)
    assert any(target.endswith("/.ray/auth_token") for target in commands["file_mounts"])


def test_every_mlflow_server_asks_for_a_password():
    servers = [(pod.where, c) for pod in pods() for c in pod.containers if "server" in c.get("args", []) and "mlflow" in c["args"]]
    assert servers
    for where, container in servers:
        assert "--app-name=basic-auth" in container["args"], where
        variables = {variable["name"]: variable for variable in container["env"]}
        for name in ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"):
            assert "secretKeyRef" in variables[name]["valueFrom"], where
    settings = [d["data"]["auth.ini"] for _, d in of_kind("ConfigMap") if "auth.ini" in d["data"]]
    assert settings
    for text in settings:
        assert "authorization_function = mlflow.server.auth:authenticate_request_basic_auth" in text
        assert re.search(r"default_permission = (READ|NO_PERMISSIONS)\b", text)
        assert "admin_password" not in text


def test_every_secret_of_a_container_is_a_reference():
    found = 0
    for pod in pods():
        for container in pod.containers:
            for variable in container.get("env", []):
                if SECRET.search(variable["name"]):
                    found += 1
                    assert "value" not in variable, f"{pod.where}: {variable['name']}"
                    assert "secretKeyRef" in variable["valueFrom"], f"{pod.where}: {variable['name']}"
    assert found > 10
    assert not of_kind("Secret")


def test_no_file_holds_an_address_with_a_password():
    for file in sorted(INFRA.rglob("*")):
        if file.is_file() and file.suffix in (".yaml", ".sh", ".md", ".py", ".Dockerfile", ".ini"):
            assert not re.search(r"://[^\s/@{}'\"]+:[^\s/@{}'\"]+@", file.read_text()), file


@pytest.fixture
def local(tmp_path, monkeypatch) -> Stack:
    """The stack of this machine, which starts nothing and remembers what it would have."""
    made = Stack(tmp_path)
    made.started: list[Service] = []
    monkeypatch.setattr(made, "_launch", made.started.append)
    monkeypatch.setattr(made, "_remember", lambda name, pid: None)

    class Database:
        def get_pid(self) -> int:
            return 1

    class Bucket:
        endpoint_url = "http://127.0.0.1:1"

        def make_bucket(self, name: str) -> str:
            return name

        def env(self) -> dict[str, str]:
            return {}

    monkeypatch.setattr(services, "postgres", lambda *_, **__: Database())
    monkeypatch.setattr(services, "s3", lambda *_: (Service("s3", [], lambda: None), Bucket(), []))
    monkeypatch.setattr(stack, "make_databases", lambda *_: ("postgresql://postgres@/mlflow", "postgresql://postgres@/mlflow_auth"))
    return made


def test_the_local_stack_asks_for_token_and_password_and_tells_no_process_list(local, tmp_path):
    keys = local._secrets()
    local._start_stores(keys)
    local._start_ray(2, keys)
    by_name = {service.name: service for service in local.started}
    assert by_name.keys() == {"s3", "mlflow", "ray-head", "ray-node"}
    assert by_name["mlflow"].command[by_name["mlflow"].command.index("--app-name") :][:2] == ["--app-name", "basic-auth"]
    assert by_name["mlflow"].env["MLFLOW_AUTH_ADMIN_PASSWORD"] == keys["mlflow_password"]
    written = (tmp_path / "mlflow_auth.ini").read_text()
    assert "default_permission = NO_PERMISSIONS" in written
    assert "authenticate_request_basic_auth" in written
    for name in ("ray-head", "ray-node"):
        assert by_name[name].env["RAY_AUTH_MODE"] == "token"
        assert by_name[name].env["RAY_ADDRESS"].startswith("127.0.0.2:")  # else Ray's helpers may find another cluster
        assert (tmp_path / "secrets/ray_token").read_text() == keys["ray_token"]
    for service in local.started:  # anybody on the machine can read a command, its environment its owner alone
        assert not [key for key, value in keys.items() if value in " ".join(map(str, service.command))], service.name
