"""`python -m tests.bad_inputs [WORD]`: every bad input whose name holds the word, what it is, and what is said of it."""

import sys
import tempfile
from pathlib import Path

from tests.bad_inputs.case import Place
from tests.bad_inputs.corpus import CORPUS
from tests.bad_inputs.refusal import check_message
from tests.bad_inputs.sound import make_sound


def main(word: str = "") -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        sound = make_sound(Path(scratch) / "sound")
        for name, case in CORPUS.items():
            if word not in name:
                continue
            place = Place(Path(scratch) / name, sound)
            place.folder.mkdir()
            print(f"{name}: {case.what}")
            try:
                case.make(place)
                case.load(place)
                said = "IS ACCEPTED"
                failed += 1
            except BaseException as error:  # whatever it is, it is what the case is about
                said = str(error)
                try:
                    check_message(error, case, place)
                except AssertionError as fault:
                    said = f"FAULT {str(fault).splitlines()[0][:400]}"
                    failed += 1
            print("    " + said.replace(scratch, "").replace("\n", "\n    "))
    print(f"{len(CORPUS)} bad inputs, {failed} not refused as they should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
