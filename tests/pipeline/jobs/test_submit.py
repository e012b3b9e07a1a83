"""What a job is called, what it is told and what travels with it; and that no secret does."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.cli import main, make_parser
from pipeline.errors import ClusterError
from pipeline.experiment_files import load_values
from pipeline.jobs.package import pack
from pipeline.jobs.profiles import Cluster, find_cluster
from pipeline.jobs.server import Job
from pipeline.jobs.submit import Submission, attempt, duration, plan, start
from tood.errors import ConfigError, ToodError

CANARY = "c4n4ry-Wx81mzQpL0"


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    (tmp_path / "cluster.yaml").write_text(
        "clusters: {lab: {jobs: 'http://127.0.0.1:1', folder: /mnt/my lab, settings: {tracking.uri: 'http://mlflow:5000'}}}"
    )
    return find_cluster("lab", str(tmp_path / "cluster.yaml"))


def planned(cluster: Cluster, *words: str) -> Submission:
    return plan(make_parser(), words, cluster)


class Server:
    """A job server that remembers."""

    address = "http://lab"

    def __init__(self, *jobs: Job):
        self.known = list(jobs)
        self.sent: list[dict] = []

    def jobs(self) -> list[Job]:
        return self.known

    def submit(self, job_id: str, entrypoint: str, runtime_env: dict, metadata: dict) -> bool:
        folder = Path(runtime_env["working_dir"])
        files = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
        told = {"id": job_id, "entrypoint": entrypoint, "env": runtime_env["env_vars"], "metadata": metadata}
        self.sent.append(told | {"files": files})
        return True


def test_the_same_work_has_the_same_id_however_it_is_written(cluster):
    first = planned(cluster, "train", "demo", "train.lr=0.5", "train.epochs=3", "train.milestones=[2]")
    other_order = ["train.epochs=3", "train.milestones=[2]", "train.lr=0.5", "storage.url=s3://elsewhere/x"]
    same = planned(cluster, "train", "demo", "--resume", *other_order)
    assert first.id == same.id
    assert first.id.startswith("train-demo-")
    others = (
        ["train", "demo"],
        ["train", "demo", "train.lr=0.6", "train.epochs=3", "train.milestones=[2]"],
        ["train", "demo", "train.lr=0.5", "train.epochs=3", "train.milestones=[2]", "--stop-after", "1"],
        ["cost", "demo", "train.lr=0.5", "train.epochs=3", "train.milestones=[2]"],
    )
    assert len({first.id, *(planned(cluster, *words).id for words in others)}) == 5


def test_a_sweeps_id_depends_on_its_search_and_an_evaluations_on_every_word(cluster):
    ids = [
        planned(cluster, "sweep", "sweeps/demo").id,
        planned(cluster, "sweep", "sweeps/demo", "sweep.space={train.lr: [0.1, 0.2]}").id,
        planned(cluster, "sweep", "sweeps/demo", "sweep.search=random", "sweep.samples=4").id,
        planned(cluster, "evaluate", "demo", "--model", "models:/a@champion").id,
        planned(cluster, "evaluate", "demo", "--model", "models:/b@champion").id,
        planned(cluster, "evaluate", "demo", "--model", "models:/b@champion", "data.root=/other").id,
        planned(cluster, "data", "check", "demo").id,
    ]
    assert len(set(ids)) == len(ids)
    assert ids[-1].startswith("data-check-demo-")


def test_the_job_goes_to_its_folder_and_reads_the_experiment_that_it_brought(cluster, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: demo\ntrain: {lr: 0.25}\n")
    submission = planned(cluster, "train", str(mine), "--stop-after", "2", "data.root=/a b")
    assert submission.entrypoint == (
        "mkdir -p '/mnt/my lab' && cd '/mnt/my lab' && PYTHONPATH=\"$OLDPWD\" exec python -P -m pipeline.cli "
        "train \"$OLDPWD\"/mine.yaml --stop-after 2 ray.address=auto tracking.uri=http://mlflow:5000 'data.root=/a b'"
    )
    carried = tmp_path / "elsewhere" / "mine.yaml"
    carried.parent.mkdir()
    carried.write_bytes(submission.package.made["mine.yaml"])
    assert load_values(str(carried)) == load_values(str(mine))
    assert "extends" not in yaml.safe_load(carried.read_text())


@pytest.mark.parametrize("words", [["--measure", "./mine.yaml"], ["--measure=mine.yaml"]])
def test_an_options_yaml_file_brings_what_it_extends(cluster, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    Path("base1.yaml").write_text("extends: demo\ntrain: {lr: 0.25}\n")
    Path("mine.yaml").write_text("extends: base1\n")
    submission = planned(cluster, "models", "promote", "digits/3", *words)
    assert submission.entrypoint.endswith(words[0].removesuffix("mine.yaml") + (" " * (len(words) - 1)) + '"$OLDPWD"/mine.yaml')
    carried = yaml.safe_load(submission.package.made["mine.yaml"])
    assert carried == load_values("mine.yaml")
    assert carried["train"]["lr"] == 0.25


def test_a_suite_travels_with_what_it_extends_and_not_without_its_experiments(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("night.yaml").write_text("extends: parts\naccuracy: [{name: a, experiment: demo}]\n")
    Path("parts.yaml").write_text("parity: [{name: evaluators, images: 20}]\n")
    assert set(yaml.safe_load(planned(cluster, "nightly", "night.yaml").package.made["night.yaml"])) > {"accuracy", "parity"}
    Path("night.yaml").write_text("accuracy: [{name: a, experiment: base1.yaml}, {name: b, experiment: /shared/base2.yaml}]\n")
    planned(cluster, "nightly", "night.yaml")  # both are the cluster's
    Path("base1.yaml").write_text("extends: demo\n")
    with pytest.raises(ConfigError, match=r"night.yaml, entry a: its experiment base1.yaml is a file of this machine"):
        planned(cluster, "nightly", "night.yaml")


def test_files_that_cannot_travel_are_refused_in_words(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("latin.yaml").write_bytes("parity: [{name: ä}]\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.yaml: is not valid YAML: byte 16 is no UTF-8"):
        planned(cluster, "nightly", "latin.yaml")
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Path(folder, "same.yaml").write_text(f"description: {folder}\n")
    words = ["models", "promote", "digits/3", "--measure", "one/same.yaml", "--why", "two/same.yaml"]
    with pytest.raises(ConfigError, match="another file of this name travels"):
        planned(cluster, *words)


def test_the_entrypoint_is_what_a_shell_runs(cluster, tmp_path):
    """With echo in place of Python: words arrive as they were typed, the carried file by its whole path."""
    folder, brought = tmp_path / "the lab", tmp_path / "brought"
    brought.mkdir()
    submission = planned(cluster, "train", "demo", "data.root=/it's $HOME")
    line = submission.entrypoint.replace("/mnt/my lab", str(folder)).replace("python -P -m pipeline.cli", "printf '%s\\n'")
    done = subprocess.run(["/bin/sh", "-c", line], cwd=brought, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[:2] == ["train", f"{brought}/demo.yaml"]
    assert done.stdout.splitlines()[-1] == "data.root=/it's $HOME"
    assert folder.is_dir()


def test_verbs_with_set_get_the_clusters_settings_by_it(cluster):
    line = planned(cluster, "predict", "models:/a@champion", "/data/x.png", "--set", "output=o").entrypoint
    assert line.endswith(
        "predict --set=ray.address=auto --set=tracking.uri=http://mlflow:5000 models:/a@champion /data/x.png --set output=o"
    )


def test_metadata_names_verb_experiment_commit_and_command(cluster):
    facts = planned(cluster, "sweep", "sweeps/demo", "train.lr=0.5").metadata
    assert (facts["tood.verb"], facts["tood.experiment"]) == ("sweep", "demo")
    assert facts["tood.command"] == "tood sweep sweeps/demo train.lr=0.5"
    assert facts["tood.hash"]
    if "tood.commit" in facts:  # none in a copy without its repository
        assert len(facts["tood.commit"]) == 40
        assert facts["tood.dirty"] in ("yes", "no")


def test_no_secret_of_this_machine_travels(cluster, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    server = Server()
    start(server, planned(cluster, "sweep", "sweeps/demo"))
    assert CANARY not in json.dumps(server.sent)
    assert "pipeline/jobs/submit.py" in server.sent[0]["files"] or "demo.yaml" in server.sent[0]["files"]
    for words in (f"storage.url=s3://bucket/{CANARY}", f"tracking.uri=http://me:{CANARY}@host", f"data.root=/x?password={CANARY}"):
        with pytest.raises(ToodError, match="credential") as refused:
            planned(cluster, "train", "demo", words)
        assert CANARY not in str(refused.value)


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_running_job_is_joined(cluster, status):
    submission = planned(cluster, "train", "demo")
    server = Server(Job(submission.id, status))
    assert start(server, submission) == (submission.id, False)
    with pytest.raises(ClusterError, match="leave out --again"):
        start(server, submission, again=True)
    assert not server.sent


def test_an_ended_job_is_run_again_only_when_asked(cluster):
    submission = planned(cluster, "train", "demo")
    done = Job(submission.id, "SUCCEEDED")
    assert start(Server(done), submission) == (submission.id, False)
    for status in ("FAILED", "STOPPED"):
        with pytest.raises(ClusterError, match=f"{status.lower()}.*add --again"):
            start(Server(Job(submission.id, status)), submission)
    server = Server(Job(f"{submission.id}-10", "FAILED"), Job(f"{submission.id}-9", "STOPPED"), done, Job("another", "RUNNING"))
    assert start(server, submission, again=True) == (f"{submission.id}-11", True)
    assert server.sent[0]["metadata"]["tood.attempt"] == "11"
    resumed = planned(cluster, "train", "demo", "--resume")
    assert start(Server(Job(submission.id, "STOPPED")), resumed) == (f"{submission.id}-2", True)


def test_attempts_are_told_from_other_jobs():
    assert [attempt("a-b", name) for name in ("a-b", "a-b-2", "a-b-12", "a-bc", "a-b-x", "a", "a-b-")] == [1, 2, 12, 0, 0, 0, 0]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (500_000, "5 days")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ui"], "tood ui: is for this machine"),
        (["jobs", "stop", "x"], "is for this machine"),
        (["trian", "demo"], "give a verb"),
        ([], "give a verb"),
        (["train", "demo", "--stop-aftr", "3"], "--stop-aftr"),
        (["train", "demo", "train.epoch=3"], "did you mean 'epochs'"),
        (["train", "dmo"], "did you mean 'demo'"),
    ],
)
def test_what_the_verb_would_refuse_is_refused_before_anything_is_sent(cluster, words, said):
    with pytest.raises(ToodError, match=said):
        planned(cluster, *words)


def test_options_of_submit_stand_on_either_side_and_those_behind_two_dashes_are_the_verbs(cluster, capsys):
    where = ["--profiles", str(cluster.origin)]
    assert main(["submit", *where, "train", "demo", "--dry-run", "train.lr=0.5", "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert main(["submit", "--dry-run", "--json", *where, "train", "demo", "train.lr=0.5"]) == 0
    assert json.loads(capsys.readouterr().out) == after
    assert main(["submit", "--dry-run", "--json", *where, "--", "train", "demo", "train.lr=0.5", "--json"]) == 0
    assert " --json " in json.loads(capsys.readouterr().out)["entrypoint"]


def repository(folder: Path) -> Path:
    for name, size in {"tood/a.py": 10, "pipeline/b.py": 20, "experiments/c.yaml": 5, "docs/big.png": 900, "tood/.env": 3}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "tood/a.py", "pipeline/b.py", "experiments", "docs"], check=True)
    return folder


def test_only_tracked_files_of_the_project_travel(tmp_path):
    root = repository(tmp_path)
    package = pack(True, {"mine.yaml": b"12345"}, root=root)
    assert package.sizes() == {"tood/a.py": 10, "pipeline/b.py": 20, "experiments/c.yaml": 5, "mine.yaml": 5}
    assert package.left_out == ("tood/.env",)
    assert set(pack(True, {}, ["experiments/*"], root).files) == {"tood/a.py", "pipeline/b.py"}
    assert pack(False, {"mine.yaml": b"1"}, root=root).sizes() == {"mine.yaml": 1}
    (root / "tood/a.py").unlink()  # deleted, and git still lists it
    assert "tood/a.py" not in pack(True, {}, root=root).files


def test_without_a_repository_the_packages_own_files_travel(tmp_path):
    for name in ("tood/a.py", "tood/__pycache__/a.pyc", "experiments/c.yaml", "numpy/n.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert set(pack(True, {}, root=tmp_path).files) == {"tood/a.py", "experiments/c.yaml"}


def test_too_much_is_refused_by_naming_the_largest(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.jobs.package.LIMIT", 30)
    with pytest.raises(ConfigError, match=r"the largest files are pipeline/b.py .*, tood/a.py .*--exclude"):
        pack(True, {}, root=repository(tmp_path))
