"""Completion of the `tood` command for bash, zsh and fish, written from its own parser; the scripts start no Python."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.arguments import children

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Verb:
    """A verb, or a group of them, and what may follow it."""

    path: tuple[str, ...]
    text: str
    verbs: tuple[tuple[str, str], ...]  # (name, what it does)
    options: tuple[tuple[str, str], ...]  # (--name, what it means)
    names_experiment: bool
    choices: tuple[str, ...]  # of its positional arguments


def script(shell: str, parser: argparse.ArgumentParser, experiments: Sequence[str]) -> str:
    """A script for one of `SHELLS`, to be sourced."""
    verbs = list(verbs_of(parser))
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](verbs, experiments)


def verbs_of(parser: argparse.ArgumentParser, path: tuple[str, ...] = (), text: str = "") -> Iterator[Verb]:
    """The command itself and everything below it."""
    below, shown, options, choices, experiment = children(parser), [], [], [], False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            shown = [(choice.dest, choice.help or "") for choice in action._choices_actions]
        elif action.option_strings:
            options.append((max(action.option_strings, key=len), _plain(action.help)))
        else:
            experiment = experiment or "experiment" in f"{action.dest} {action.metavar}".lower()
            choices += [str(choice) for choice in action.choices or ()]
    yield Verb(path, _plain(text), tuple((name, _plain(what)) for name, what in shown), tuple(options), experiment, tuple(choices))
    texts = dict(shown)
    for name, verb in below.items():
        yield from verbs_of(verb, (*path, name), texts.get(name, ""))


def _plain(text: str | None) -> str:
    """A help text without what argparse or a shell would read in it."""
    return " ".join((text or "").replace("%%", "%").translate(str.maketrans("", "", "'\"`\\[]:$")).split())


def _words(verb: Verb, experiments: Sequence[str]) -> list[str]:
    """All that may stand after a verb, but for files."""
    names = [name for name, _ in (*verb.verbs, *verb.options)]
    return [*names, *verb.choices, *(experiments if verb.names_experiment else ())]


def _bash(verbs: Sequence[Verb], experiments: Sequence[str]) -> str:
    """The longest known verb in the line decides; `submit` takes the words of the verb that it runs."""
    cases = "\n".join(f"    '{' '.join(v.path)}') words='{' '.join(_words(v, experiments))}' ;;" for v in verbs)
    known = " ".join(f"'{' '.join(v.path)}'" for v in verbs if v.path)
    return f"""# tood: completion for bash. Use: eval "$(tood completion bash)"
_tood() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" path='' word try known words=''
  local all=({known})
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    [[ $path == submit ]] && try="$word" || try="${{path:+$path }}$word"
    for known in "${{all[@]}}"; do [[ $known == "$try" ]] && path="$try"; done
  done
  case "$path" in
{cases}
  esac
  [[ $path == submit ]] && words="$words {" ".join(name for name, _ in verbs[0].verbs)}"
  COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))
}}
complete -o filenames -F _tood tood
"""


def _zsh(verbs: Sequence[Verb], experiments: Sequence[str]) -> str:
    def described(verb: Verb) -> str:
        told = [f"'{name}:{what}'" for name, what in (*verb.verbs, *verb.options)]
        more = [*verb.choices, *(experiments if verb.names_experiment else ())]
        return " ".join([*told, *(f"'{name}'" for name in more)])

    cases = "\n".join(f"    '{' '.join(v.path)}') words=({described(v)}) ;;" for v in verbs)
    known = " ".join(f"'{' '.join(v.path)}'" for v in verbs if v.path)
    return f"""#compdef tood
# tood: completion for zsh. Use: eval "$(tood completion zsh)", after compinit
_tood() {{
  local verb='' word try
  local -a all words_before
  words_before=("${{(@)words[2,CURRENT-1]}}")
  all=({known})
  for word in $words_before; do
    [[ $verb == submit ]] && try="$word" || try="${{verb:+$verb }}$word"
    (( ${{all[(Ie)$try]}} )) && verb="$try"
  done
  local -a offered
  case "$verb" in
{cases.replace("words=(", "offered=(")}
  esac
  _describe -t verbs 'tood' offered
  _files
}}
compdef _tood tood
"""


def _fish(verbs: Sequence[Verb], experiments: Sequence[str]) -> str:
    lines = ["# tood: completion for fish. Use: tood completion fish | source"]
    for verb in verbs:
        seen = " and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.path) or "__fish_use_subcommand"
        condition = seen.replace(" and ", "; and ")
        start = f"complete -c tood -n '{condition}'"
        lines += [f"{start} -a '{name}' -d '{what}'" for name, what in verb.verbs]
        long = ((name.removeprefix("--"), what) for name, what in verb.options if name.startswith("--"))
        lines += [f"{start} -l '{name}' -d '{what}'" for name, what in long]
        more = [*verb.choices, *(experiments if verb.names_experiment else ())]
        if more and verb.path:
            lines.append(f"{start} -a '{' '.join(more)}'")
    return "\n".join(lines) + "\n"
