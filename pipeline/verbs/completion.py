"""The verb that writes completion scripts for shells."""

import argparse

from pipeline.arguments import Verbs


def add_to(verbs: Verbs) -> None:
    added = verbs.add("completion", _completion, 'completion for your shell, such as: eval "$(tood completion bash)"')
    added.add_argument("shell", choices=["bash", "zsh", "fish"])


def _completion(options: argparse.Namespace) -> None:
    from pipeline.cli import make_parser
    from pipeline.completion import script
    from pipeline.experiment_files import experiment_names

    names = [name for name in experiment_names() if not name.startswith("base/")]
    print(script(options.shell, make_parser(), names), end="")
