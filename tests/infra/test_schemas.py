"""Every manifest fits the schema of its kind: Kubernetes' own, KubeRay's, and that of `ray up`; keys unknown to it are errors."""

import copy
import json
import os
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from tests.infra.manifests import INFRA, RAY_KINDS, documents, of_kind, pods

KUBERNETES = "1.33"
# KubeRay's custom resource definitions as JSON (README of infra), which are not part of this project.
KUBERAY = Path(os.environ.get("KUBERAY_CRDS", INFRA.parents[1] / "shared" / "kuberay_crds"))


def fits_kubernetes(document: dict) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def strict(schema: dict) -> dict:
    """A custom resource's schema that refuses unknown keys, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def kuberay_errors(document: dict) -> list[str]:
    schema = strict(json.loads((KUBERAY / f"{document['kind'].lower()}.v1.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


def aws() -> dict:
    return yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())


def aws_errors(config: dict) -> list[str]:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(config)]


@pytest.mark.parametrize(("where", "document"), [each for each in documents() if each[1]["kind"] not in RAY_KINDS])
def test_objects_of_kubernetes(where, document):
    fits_kubernetes(document)


@pytest.mark.parametrize(("where", "template"), pods())
def test_pods_also_those_of_ray(where, template):
    fits_kubernetes({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template})


@pytest.mark.skipif(not KUBERAY.is_dir(), reason="KUBERAY_CRDS names no folder with KubeRay's schemas")
@pytest.mark.parametrize(("where", "document"), of_kind(*RAY_KINDS))
def test_objects_of_kuberay(where, document):
    assert kuberay_errors(document) == []


def test_the_cluster_of_ray_up():
    assert aws_errors(aws()) == []


def test_mistakes_are_found():
    (_, deployment), *_ = of_kind("Deployment")
    wrong = copy.deepcopy(deployment)
    wrong["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        fits_kubernetes(wrong)
    assert aws_errors(aws() | {"max_worker": 3})


@pytest.mark.skipif(not KUBERAY.is_dir(), reason="KUBERAY_CRDS names no folder with KubeRay's schemas")
def test_mistakes_in_rays_objects_are_found():
    cluster = copy.deepcopy(of_kind("RayCluster")[0][1])
    cluster["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    assert "maxReplica" in kuberay_errors(cluster)[0]
