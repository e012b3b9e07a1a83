"""What a ledger proves of a run that was killed again and again: which steps counted, which were done twice."""

import json
from pathlib import Path
from typing import NamedTuple

Place = tuple[int, int]  # epoch and batch within it, from 0


class Account(NamedTuple):
    epochs: dict[int, list[list[int]]]  # of each epoch, the images of each batch that counted, of all ranks side by side
    redone: list[int]  # batches done again, at each time that training went on
    lost: list[float]  # seconds of training done again, at each such time
    longest: float  # seconds: from a checkpoint's writing to its storing, plus those of a step, evaluation included
    faults: list[str]


def read(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]  # what follows the last end was cut


def account(events: list[dict], steps_per_epoch: int, committed: str) -> Account:
    """Replay a ledger. committed: the word for a checkpoint that counts, `written` or `stored`.

    A process that begins an epoch at a batch takes back all from there on, of ranks that are no more too. It must begin neither
    before the newest checkpoint that counts nor past what was done.
    """
    counted: dict[int, dict[Place, list[int]]] = {}
    redone, lost, faults, safe = [], [], [], 0
    since, heard = {}, {}  # when training had the state of a step; the last sign of each process
    steps = storing = 0.0  # the longest so far
    for event in events:
        what, now = event["what"], event["time"]
        steps = max(steps, now - heard.get(event["pid"], now))
        if what == "written":
            since[event["step"]] = now
        if what == "stored":
            storing = max(storing, now - since[event["step"]])
        if what == committed:
            safe = max(safe, event["step"])
        elif what == "begun":
            mine, here = counted.setdefault(event["rank"], {}), (event["epoch"], event["batch"])
            step = here[0] * steps_per_epoch + here[1]
            again = [place for place in mine if place >= here]
            if step < safe:
                faults.append(f"went on from step {step} although the checkpoint of step {safe} was {committed}")
            if event["rank"] == 0 and step > len(mine):  # another rank may be new
                faults.append(f"went on from step {step} after {len(mine)} steps")
            if again and event["rank"] == 0:
                redone.append(len(again))
                moment = max(heard.values())
                lost.append(moment - since.get(step, moment))  # killed between writing and noting: it was just now
            for gone in counted:
                if gone == event["rank"] or gone >= event["world"]:
                    for place in [place for place in counted[gone] if place >= here]:
                        del counted[gone][place]
            since[step] = now  # what is lost from here on was done after this moment
        elif what == "batch":
            place = (event["epoch"], event["batch"])
            if place in counted.setdefault(event["rank"], {}):
                faults.append(f"batch {place} came twice")
            counted[event["rank"]][place] = event["images"]
        heard[event["pid"]] = now
    epochs: dict[int, list[list[int]]] = {}
    for place in sorted(counted.get(0, {})):
        together = [image for rank in sorted(counted) for image in counted[rank].get(place, [])]
        epochs.setdefault(place[0], []).append(together)
    return Account(epochs, redone, lost, steps + storing, faults)


def faults_of(found: Account, unkilled: Account, images: int, interval: float) -> list[str]:
    """Whatever is not as it should be: an image skipped or seen twice in an epoch, another order, or more done again than an
    interval between checkpoints (seconds), the storing of one, and the step under way.
    """
    faults = list(found.faults)
    for epoch, batches in found.epochs.items():
        seen = [image for batch in batches for image in batch]
        if len(seen) != images or len(set(seen)) != images:
            faults.append(f"epoch {epoch}: {len(seen)} images, {len(set(seen))} different ones, of {images}")
    if found.epochs != unkilled.epochs:
        faults.append("the batches are not those of the unkilled run")
    if max(found.lost, default=0) > interval + found.longest:
        faults.append(f"{max(found.lost):.1f} s were done again, of {interval + found.longest:.1f} s allowed")
    return faults
