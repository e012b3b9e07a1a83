"""What stands on top of a run's page in MLflow, in Markdown."""

from collections.abc import Mapping, Sequence

from pipeline.config import Experiment
from pipeline.tracking.facts import flat_params
from tood.config import to_dict

FEW = 12  # classes that are named
SAID = ("detector", "head", "objective", "depth", "neck", "epochs", "batch_size", "lr", "precision", "seed")


def describe_run(experiment: Experiment, label: str, names: Sequence[str], images: Mapping[str, int]) -> str:
    """label: a trial's own settings, empty for a run of its own; names: classes; images: how many each split has."""
    params = flat_params(to_dict(experiment))
    classes = ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")
    rows = {
        "data": ", ".join(f"{count} images ({split})" for split, count in images.items()),
        f"{len(names)} classes": classes,
        "settings": ", ".join(f"{name} {params[name]}" for name in SAID if params.get(name) not in (None, "")),
        "configuration": f"`{experiment.hash}`",
    }
    table = "\n".join(f"| {key} | {value.replace('|', '/')} |" for key, value in rows.items())
    head = f"**{label or experiment.name}**" + (f", a trial of {experiment.name}" if label else "")
    return "\n\n".join(part for part in (head, experiment.description, f"| | |\n|---|---|\n{table}") if part)
