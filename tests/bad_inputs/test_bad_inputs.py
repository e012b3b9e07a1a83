"""Every bad input is refused by one clear error that says what, where and what to do; nothing hangs, runs or is left behind."""

import shlex
from pathlib import Path

import pytest

from pipeline import cluster
from pipeline.cli import main
from tests.bad_inputs.case import Case, Place
from tests.bad_inputs.corpus import CORPUS, ROOMS
from tests.bad_inputs.refusal import ADVICE, INTERNAL, check_message
from tood.errors import ToodError

COMMANDS = [name for name, case in CORPUS.items() if case.command or name == "words-none"]
LOCKS = ("out/store/.locks", "out/.locks")  # a store's own, which nobody may remove


@pytest.fixture(autouse=True)
def nobody_to_reach(monkeypatch, tmp_path_factory):
    """No way out of this machine, no credentials of its owner, no Ray."""
    nothing = tmp_path_factory.getbasetemp() / "nothing"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(nothing))
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1", "no_proxy": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody's
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(cluster, "connected", lambda *arguments: pytest.fail("Ray was about to start"))


def files(folder: Path) -> dict[str, object]:
    """What lies in a folder, by name: size and time of change of each file, links and pipes unopened."""
    found = {}
    for path in folder.rglob("*"):
        name, status = str(path.relative_to(folder)), path.lstat()
        if not name.startswith(LOCKS) and not path.is_dir():
            found[name] = (status.st_size, status.st_mtime_ns)
    return found


@pytest.mark.parametrize("name", CORPUS)
def test_it_is_refused_by_a_message_that_helps(name, sound, tmp_path):
    case, place = CORPUS[name], Place(tmp_path, sound)
    case.make(place)
    before = files(tmp_path), files(sound)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - check_message says which
        case.load(place)
    check_message(caught.value, case, place)
    assert (files(tmp_path), files(sound)) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_ends_with_2_and_one_error(name, sound, tmp_path, monkeypatch, capfd):
    case, place = CORPUS[name], Place(tmp_path, sound)
    case.make(place)
    before = files(tmp_path), files(sound)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(place.of(case.command))) == 2
    out, err = capfd.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert ADVICE.search(err)
    assert not INTERNAL.search(out + err)
    assert "hidden" not in out + err
    assert (files(tmp_path), files(sound)) == before


def test_the_corpus_is_whole():
    assert len(CORPUS) == sum(len(room.CASES) for room in ROOMS), "two cases have one name"
    assert len(CORPUS) >= 500
    assert len(COMMANDS) >= 100
    for name, case in CORPUS.items():
        assert case.what, name
        assert len(case.what) <= 100, name
        assert case.where or case.says, name
    assert len({case.what for case in CORPUS.values()}) > 0.7 * len(CORPUS)  # a room may share words with another


CASE = Case("x", lambda place: None, lambda place: None, "{folder}/x.yaml", "lr")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x.yaml lr; give it"),
        ToodError("/f/x.yaml: lr is wrong"),  # does not say what to do
        ToodError("lr: expected float, got 'x'"),  # not where
        ToodError("/f/x.yaml: expected a mapping"),  # not what
        ToodError("/f/x.yaml: lr\nset lr"),
        ToodError("/f/x.yaml: lr\x1b[2J; set lr"),
        ToodError("/f/x.yaml: lr: 'NoneType' object has no attribute 'x'; set lr"),
        ToodError("/f/x.yaml: lr " + "x" * 5000 + "; set lr"),
    ],
)
def test_the_check_of_messages_can_fail(error):
    with pytest.raises(AssertionError):
        check_message(error, CASE, Place(Path("/f"), Path("/s")))
    check_message(ToodError("/f/x.yaml: lr: expected float, got 'x'"), CASE, Place(Path("/f"), Path("/s")))
