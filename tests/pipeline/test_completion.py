"""Completion scripts: every verb and option is offered where it may stand; bash itself is asked."""

import shutil
import subprocess

import pytest

from pipeline.cli import main, make_parser
from pipeline.completion import SHELLS, script, verbs_of


def offered(words: str) -> list[str]:
    """What bash completes `tood WORDS` with; words end with a blank where a new one begins."""
    line = f"tood {words}".split(" ")
    asked = f"""
{script("bash", make_parser(), ["demo", "sweeps/demo"])}
cd /var/empty 2>/dev/null || cd "$(mktemp -d)"
COMP_WORDS=({" ".join(f"'{word}'" for word in line)}); COMP_CWORD={len(line) - 1}
_tood; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash on this machine")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sw", {"sweep"}),
        ("sweep swee", {"sweeps/demo"}),
        ("sweep demo --res", {"--resume"}),
        ("train --clus", {"--cluster"}),
        ("data ", {"check", "convert", "--help", "--h"}),
        ("data con", {"convert"}),
        ("data convert v", {"voc"}),
        ("jobs st", {"status", "stop"}),
        ("submit --de", {"--detach"}),
        ("submit tra", {"train"}),
        ("submit train --stop", {"--stop-after"}),
        ("completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_bash_offers_what_may_stand_there(words, expected):
    found = set(offered(words))
    assert expected - {"--h"} <= found
    if not words.endswith(" "):
        assert found == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_option_is_in_every_script(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for verb in verbs_of(make_parser()):
        for name, _ in (*verb.verbs, *verb.options):
            assert name.removeprefix("--") in text
    assert "sweeps/demo" in text
    program = shutil.which(shell)
    if program:
        subprocess.run([program, "-n"], input=text, text=True, check=True, timeout=20)
