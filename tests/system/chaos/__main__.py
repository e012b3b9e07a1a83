"""Every program of harm, one after the other, in processes of their own; then one table of all (`make chaos`).

python -m tests.system.chaos [NAME ...] [--seed S]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.system.chaos.summary import Row, begin, table

HERE = Path(__file__).parent


def programs() -> list[str]:
    """Names of the modules of this folder that have a `main`."""
    return sorted(path.stem for path in HERE.glob("[a-z]*.py") if "\ndef main(" in path.read_text())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.chaos", description="All programs of harm, or those named.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(programs())}")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(programs()):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(programs())}")
    begin()
    rows, ended_well = [], True
    for name in options.names or programs():
        print(f"== {name}", flush=True)
        code, line = run(name, options.seed)
        ended_well &= code == 0
        rows += [Row(f"{name}: {row['what']}", row["tried"], row["survived"], row["remark"]) for row in line.get("rows", ())]
        if not line:
            rows.append(Row(name, 1, 0, f"ended with exit code {code} and no summary"))
    print(f"\n{table(rows)}", flush=True)
    return 0 if ended_well else 1


def run(name: str, seed: int) -> tuple[int, dict]:
    """A program's exit code and its JSON line; what it prints is shown as it comes."""
    command = [sys.executable, "-m", f"tests.system.chaos.{name}", "--seed", str(seed)]
    found: dict = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            for text in process.stdout:
                if text.startswith('{"chaos"'):
                    found = json.loads(text)
                else:
                    print(text, end="", flush=True)
        except BaseException:  # ended by a person: so is the program, which then ends its servers
            process.terminate()
            raise
    return process.returncode, found


if __name__ == "__main__":
    sys.exit(main())
