"""cluster.yaml: what it may say, what it must not, and what becomes of it on the command line."""

import os
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.experiment_files import parse_overrides
from pipeline.jobs.profiles import find_cluster, flatten, words
from tood.errors import ConfigError

LAB = """
clusters:
  lab:
    jobs: https://ray.example:8265
    token: {env: LAB_TOKEN}
    folder: /mnt/lab
    settings:
      tracking: {uri: "https://mlflow.example"}
      storage.url: s3://detectors/tood
    environment: {AWS_DEFAULT_REGION: eu-north-1, CHUNKS: 4}
    secrets: {AWS_SECRET_ACCESS_KEY: {file: key}}
    here:
      settings: {tracking.uri: "http://127.0.0.1:5000"}
      environment: {AWS_DEFAULT_REGION: us-east-1}
"""


def write(folder: Path, text: str = LAB) -> str:
    (folder / "cluster.yaml").write_text(text)
    return str(folder / "cluster.yaml")


def test_a_job_is_told_the_clusters_own_addresses_and_this_machine_its_own(tmp_path):
    cluster = find_cluster("lab", write(tmp_path))
    assert cluster.job_settings() == ["ray.address=auto", "tracking.uri=https://mlflow.example", "storage.url=s3://detectors/tood"]
    assert parse_overrides(cluster.local_settings()) == {
        "tracking": {"uri": "http://127.0.0.1:5000"},
        "storage": {"url": "s3://detectors/tood"},
    }
    assert cluster.job_environment() == {"AWS_DEFAULT_REGION": "eu-north-1", "CHUNKS": "4"}


def test_secrets_come_from_files_and_variables_at_the_moment_of_use(tmp_path, monkeypatch):
    cluster = find_cluster("lab", write(tmp_path))
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "LAB_TOKEN"):
        monkeypatch.setenv(name, "")  # undone after the test, whatever `enter` sets
    with pytest.raises(ConfigError, match=r"clusters.lab.secrets.AWS_SECRET_ACCESS_KEY: .*key cannot be read"):
        cluster.enter()
    (tmp_path / "key").write_text("hush\n")
    cluster.enter()
    assert (os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_DEFAULT_REGION"]) == ("hush", "us-east-1")
    with pytest.raises(ConfigError, match=r"clusters.lab.token: the variable LAB_TOKEN is not set"):
        cluster.token()
    monkeypatch.setenv("LAB_TOKEN", "t0ken")
    assert cluster.token() == "t0ken"
    assert "hush" not in repr(cluster)


@pytest.mark.parametrize(
    "value",
    [
        "http://x:1/y",
        "s3://b/p",
        "auto",
        "",
        "1",
        "true",
        "null",
        "a b",
        "x: y",
        "[1",
        "a,b",
        "'q'",
        1,
        1e-9,
        True,
        None,
        [1, "x"],
        {},
    ],
)
def test_settings_read_back_as_they_were_written(value):
    assert parse_overrides(words({"a.b": value})) == {"a": {"b": value}}


def test_nested_and_dotted_settings_are_the_same():
    assert flatten({"a": {"b": 1, "c.d": 2}, "e": {}}) == {"a.b": 1, "a.c.d": 2, "e": {}}


WRONG = {
    "misspelt key": ("jobs: https://ray.example:8265", "jbos: x", "clusters.lab.jbos: unknown key; did you mean 'jobs'"),
    "no address": ("jobs: https://ray.example:8265", "description: x", "clusters.lab: jobs: is missing"),
    "address with password": ("https://ray", "https://me:hidden@ray", "jobs: 'https://***@ray.example:8265' is no such address"),
    "misspelt setting": ("storage.url:", "storage.ulr:", "settings: storage.ulr: unknown key; did you mean 'url'"),
    "setting of results": ("storage.url: s3://detectors/tood", "train.lr: 1", "settings.train.lr: changes what a run learns"),
    "relative folder": ("/mnt/lab", "lab", "folder: 'lab' is relative"),
    "secret in the open": ("{file: key}", "hidden", "secrets.AWS_SECRET_ACCESS_KEY: name where it is found"),
    "token in the open": ("{env: LAB_TOKEN}", "hidden", "token: name where it is found"),
    "secret as variable": ("CHUNKS: 4", "LAB_PASSWORD: hidden", "environment.LAB_PASSWORD: is a secret"),
    "no variable": ("CHUNKS: 4", "not-one: 4", "environment: 'not-one' is not the name of a variable"),
    "a list of clusters": ("clusters:", "clusters: [lab]\nother:", "expected `clusters:`"),
    "no YAML": ("clusters:", "clusters: [", "is not valid YAML"),
    "unknown default": ("clusters:", "default: lba\nclusters:", "default: 'lba' is none of lab"),
    "unknown part": ("clusters:", "cluster: 1\nclusters:", "cluster: unknown key"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_faulty_file_is_one_clear_error_that_shows_no_secret(case, tmp_path, capsys):
    old, new, said = WRONG[case]
    assert old in LAB
    assert main(["jobs", "--profiles", write(tmp_path, LAB.replace(old, new))]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "hidden" not in error
    assert error.count("\n") == 1


def test_which_file_and_which_cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match=r"no file of clusters: write cluster.yaml or ~/.config/tood/cluster.yaml"):
        find_cluster()
    (tmp_path / "home/.config/tood").mkdir(parents=True)
    write(tmp_path / "home/.config/tood", LAB.replace("lab:", "far:"))
    assert find_cluster().name == "far"
    write(tmp_path)
    assert find_cluster().name == "lab"
    with pytest.raises(ConfigError, match=r"--cluster lba: cluster.yaml has no such cluster; did you mean 'lab'"):
        find_cluster("lba")
    write(tmp_path, LAB + "  other: {jobs: 'http://127.0.0.1:1'}\n")
    with pytest.raises(ConfigError, match="holds lab, other; pick one with --cluster NAME"):
        find_cluster()
    write(tmp_path, LAB + "  other: {jobs: 'http://127.0.0.1:1'}\ndefault: other\n")
    assert find_cluster().name == "other"
    with pytest.raises(ConfigError, match=r"--profiles none.yaml: no such file"):
        find_cluster("lab", "none.yaml")


def test_a_clusters_settings_stand_under_the_persons_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "key").write_text("hush")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "CHUNKS"):
        monkeypatch.setenv(name, "")
    words = ["train", "demo", "--dry-run", "--cluster", "lab", "--profiles", write(tmp_path), "storage.url=s3://mine/x"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "url: s3://mine/x" in printed
    assert "uri: http://127.0.0.1:5000" in printed
    assert "hush" not in printed
