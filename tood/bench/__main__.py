"""`python -m tood.bench`: the bench where only torch is installed."""

import argparse
import sys
from collections.abc import Sequence

from tood.bench.arguments import add_arguments
from tood.bench.command import run
from tood.errors import ToodError


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the parts of training and detection on fixed cases."""
    parser = argparse.ArgumentParser(prog="python -m tood.bench", description=main.__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(arguments))
    except ToodError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
