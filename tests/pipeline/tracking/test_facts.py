import os
import subprocess
import threading

import pytest

from pipeline.tracking.facts import environment_tags, flat_params, redact

CONFIG = {
    "model": {
        "tower": "t_head",
        "aligner": "both",
        "layers": 6,
        "prior": "point",
        "box": "distance",
        "channels": 256,
        "objective": {"name": "task_aligned", "alpha": 1.0, "beta": 6.0, "m": 13, "gamma": 2.0, "warmup": {"name": "atss"}},
        "backbone": {"depth": 50, "norm_eval": True},
        "neck": {"channels": 256},
    },
    "train": {"lr": 0.01, "epochs": 12, "batch_size": 16, "seed": 0, "milestones": [8, 11], "gamma": 0.1},
    "data": {"root": "data/coco", "long_side": 1333},
}


def test_short_names():
    flat = flat_params(CONFIG)
    expected = {"alpha": 1.0, "beta": 6.0, "m": 13, "head": "t_head", "head_aligner": "both", "objective": "task_aligned"}
    assert {key: flat[key] for key in expected} == expected
    assert flat["depth"] == 50
    assert flat["channels"] == flat["neck_channels"] == 256
    assert flat["gamma"] == 2.0  # an option of the objective


def test_only_numbers_and_words_and_nothing_absent():
    assert flat_params({"model": {"tower": "parallel", "objective": {"name": "atss"}}}) == {
        "head": "parallel",
        "objective": "atss",
    }
    assert all(isinstance(value, int | float | str) for value in flat_params(CONFIG).values())
    assert flat_params({}) == {}


def test_swept_keys_are_there_under_a_free_name():
    flat = flat_params(CONFIG, ["train.gamma", "model.backbone.norm_eval", "model.objective.alpha", "train.epochs"])
    assert flat["train.gamma"] == 0.1  # the objective has a gamma too
    assert flat["norm_eval"] is True
    assert flat.keys() - flat_params(CONFIG).keys() == {"train.gamma", "norm_eval"}


def test_compare_page_opens_on_alpha_beta_head():
    """It preselects the first three, alphabetically, of the parameters that differ: here all that a change of head changes."""
    parallel = {**CONFIG["model"], "tower": "parallel", "aligner": "none", "prior": "anchor", "box": CONFIG["model"]["box"]}
    other = flat_params({**CONFIG, "model": {**parallel, "objective": {"name": "atss"}}})
    flat = flat_params(CONFIG)
    differing = sorted(key for key in flat.keys() | other.keys() if flat.get(key) != other.get(key))
    assert [key for key in differing if key != "gamma"][:3] == ["alpha", "beta", "head"]


@pytest.mark.parametrize(
    "text",
    [
        "see https://me:hunter22secret@host/x",
        "key AKIAIOSFODNN7EXAMPLE in the log",
        "aws_secret_access_key = hunter22secret",
        "AWS_SECRET_ACCESS_KEY=hunter22secret",
        '{"password": "hunter22secret", "a": 1}',
        "Authorization: Bearer hunter22secret",
        "token: hunter22secret",
        "https://bucket/x?X-Amz-Signature=hunter22secret&a=b",
        "ghp_hunter22secret0123456789",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter22secret\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_credentials_are_redacted(text):
    assert "hunter22secret" not in redact(text)
    assert "AKIAIOSFODNN7EXAMPLE" not in redact(text)
    assert "***" in redact(text)


def test_own_secrets_are_redacted_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "plainlooking-value")
    monkeypatch.setenv("SOME_TOKEN_FOLDER", "/home/of/tokens")
    assert redact("a plainlooking-value in /home/of/tokens") == "a *** in /home/of/tokens"


def test_ordinary_text_stays():
    text = "tokens: 128\nlr: 0.01\nurl: s3://bucket/key\nsecretary: anna\nhttp://host:5000/path?a=b key: 3"
    assert redact(text) == text


def test_environment_names_commit_and_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "mlflow.source.git.commit" not in environment_tags()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    (tmp_path / "a.txt").write_text("1")
    for command in (["init", "-q"], ["add", "a.txt"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    tags = environment_tags()
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["git.dirty"] == "no"
    assert {"version.python", "version.torch", "version.ray", "version.mlflow"} <= tags.keys()
    (tmp_path / "a.txt").write_text("2")
    assert environment_tags()["git.dirty"] == "yes"


def test_other_threads_may_change_the_environment_meanwhile(monkeypatch):
    done = threading.Event()

    def change():
        while not done.is_set():
            os.environ["PASSING_TOKEN"] = "plainlooking-value"
            os.environ.pop("PASSING_TOKEN", None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3000):
            redact("text")
    finally:
        done.set()
        thread.join()


def test_a_submitted_job_has_its_commit_from_the_submission(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOD_COMMIT", "c" * 40)
    monkeypatch.setenv("TOOD_DIRTY", "yes")
    tags = environment_tags()
    assert (tags["mlflow.source.git.commit"], tags["git.dirty"]) == ("c" * 40, "yes")
