"""Reads what infra/ describes: documents, pods and their containers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

INFRA = Path(__file__).parents[2] / "infra"
RAY_KINDS = ("RayCluster", "RayJob", "RayCronJob")


class Pod(NamedTuple):
    where: str
    template: dict[str, Any]

    @property
    def containers(self) -> list[dict]:
        return [*self.template["spec"]["containers"], *self.template["spec"].get("initContainers", [])]

    @property
    def labels(self) -> dict[str, str]:
        return self.template["metadata"]["labels"]


def documents() -> list[tuple[str, dict]]:
    """(file and name, document) of every Kubernetes object."""
    files = sorted([*INFRA.glob("kuberay/*.yaml"), *INFRA.glob("mlflow/*.yaml")])
    return [
        (f"{file.name}:{document.get('metadata', {}).get('name', '')}", document)
        for file in files
        if file.name != "kustomization.yaml"
        for document in yaml.safe_load_all(file.read_text())
    ]


def pods() -> list[Pod]:
    return [Pod(f"{where}{path}", template) for where, document in documents() for path, template in _templates(document, "")]


def of_kind(*kinds: str) -> list[tuple[str, dict]]:
    return [(where, document) for where, document in documents() if document["kind"] in kinds]


def locked(package: str) -> str:
    lock = (INFRA.parent / "requirements.lock").read_text()
    return re.search(rf"^{re.escape(package)}==(\S+)$", lock, re.MULTILINE)[1]


def _templates(value: Any, path: str) -> Iterator[tuple[str, dict]]:
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}) if isinstance(value.get("spec"), dict) else False:
            yield path, value
        for key, inner in value.items():
            yield from _templates(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _templates(inner, f"{path}[{i}]")
