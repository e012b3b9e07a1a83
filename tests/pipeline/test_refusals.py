"""What the system refuses is one line and exit code 2, a reader that left is none; an error of the program stays a traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.refusals import explained, make_folder
from tests.pipeline.bad_inputs import make_place
from tood.errors import ConfigError

READ_ONLY = Path("/sys/kernel")  # for root too


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


def test_a_folder_is_made_and_written_to_and_stays_empty(tmp_path):
    make_folder(tmp_path / "a" / "b", "output")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--output: .*/file/x cannot be made \(Not a directory\); choose another folder"):
        make_folder(tmp_path / "file" / "x", "--output")
    with pytest.raises(ConfigError, match=r"output: /sys/kernel cannot be written to \(.*\); choose another folder"):
        make_folder(READ_ONLY, "output")


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("predict {place}/model {place}/data/val --output /sys/kernel", "--output"),
        ("analyze {place}/model {place}/tiny.yaml --output /sys/kernel", "--output"),
        ("explain {place}/data/val --checkpoint {place}/model --output /sys/kernel", "--output"),
        ("train {place}/tiny.yaml output=/sys/kernel tracking.uri=sqlite:///{place}/m.db storage.url={place}/s", "output"),
        ("sweep {place}/tiny.yaml sweep.space={{'train.lr':[1]}} output=/sys/kernel tracking.uri=sqlite:///{place}/m", "output"),
    ],
)
def test_a_folder_that_nothing_can_be_written_to_is_refused_before_any_work(place, capsys, monkeypatch, words, setting):
    for work in ("pipeline.detect.draw_detections", "pipeline.analyze.analyse", "pipeline.explain.explain"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("work was done first"))
    assert cli.main([word.format(place=place) for word in words.split()]) == 2
    assert capsys.readouterr().err.startswith(f"error: {setting}: /sys/kernel cannot be written to (")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "a file: No space left on device; free space, or choose"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), "/x/y: Read-only file system; choose another place"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: Permission denied; choose another place"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), "/x: Is a directory; correct the path"),
    ],
)
def test_an_error_of_files_is_one_line(capsys, monkeypatch, error, said):
    assert run_that_raises(monkeypatch, error) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize(
    "error", [OSError("no file in sight"), TimeoutError(errno.ETIMEDOUT, "timed out"), ValueError("x"), BrokenPipeError()]
)
def test_an_error_of_the_program_stays_a_traceback(monkeypatch, error):
    with pytest.raises(type(error)):
        run_that_raises(monkeypatch, error)


def run_that_raises(monkeypatch, error: BaseException, **options) -> int:
    class Options:
        def run(self, _):
            raise error

    parsed = Options()
    vars(parsed).update(options)
    monkeypatch.setattr(cli, "make_parser", lambda: type("P", (), {"parse_args": lambda *_: parsed}))
    return cli.main([])


def test_an_error_without_number_is_ours():
    assert explained(OSError("no file in sight")) == ""


@pytest.mark.parametrize(("options", "said"), [({"resume": False}, "interrupted; --resume goes on"), ({}, "interrupted\n")])
def test_only_verbs_that_can_resume_say_so(monkeypatch, capsys, options, said):
    assert run_that_raises(monkeypatch, KeyboardInterrupt(), **options) == 130
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_the_command_quietly(unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "train", "demo", "--dry-run"],
        stdout=writing, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writing)
    complained = process.communicate(timeout=60)[1]
    assert (process.returncode, complained) == (141, "")
