from pipeline.config import experiment_of
from pipeline.tracking.notes import describe_run


def test_a_runs_page_says_what_it_is():
    experiment = experiment_of({"name": "exp", "description": "What it is for.", "train": {"lr": 0.5}})
    names = [f"c|{i}" for i in range(20)]
    text = describe_run(experiment, "alpha=1 m=9", names, {"train": 10, "val": 3})
    assert text.startswith("**alpha=1 m=9**, a trial of exp\n\nWhat it is for.\n\n| | |\n|---|---|\n")
    assert "| data | 10 images (train), 3 images (val) |" in text
    assert "| 20 classes | c/0, c/1, " in text
    assert "c/11, ... |" in text
    assert "detector tood" in text
    assert "lr 0.5" in text
    assert f"| configuration | `{experiment.hash}` |" in text
    assert describe_run(experiment_of({"name": "exp"}), "", ["c"], {}).startswith("**exp**\n\n| | |")
