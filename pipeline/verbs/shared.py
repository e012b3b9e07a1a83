"""What several verbs say or need."""

from collections.abc import Sequence
from pathlib import Path

from tood.errors import ToodError

EXPERIMENT = "a shipped experiment's name (`tood experiments`) or a YAML file"
MODEL = "models:/NAME@alias, a model or checkpoint folder, or a .safetensors file"
RUN = "MLflow run to log to; else tracking.uri, tracking.experiment or MLFLOW_TRACKING_URI make it a run of its own"
SETTINGS = "overrides such as train.epochs=24 data.root=/data/coco"


def show(experiment) -> None:
    from pipeline.config import to_yaml
    from tood.optimisation import describe_rate

    print(to_yaml(experiment))
    print(f"# {describe_rate(experiment.train)}")
    print(f"# hash {experiment.hash}")


def experiment_and_settings(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """["bccd_r18", "data.root=x"] -> ("bccd_r18", ["data.root=x"]); the name may be left out."""
    named = [w for w in words if "=" not in w]
    if len(named) > 1:
        raise ToodError(f"expected one experiment and key=value settings, got {' '.join(named)}")
    return (named[0] if named else None), [w for w in words if "=" in w]


def values_and_places(experiment: str | None, settings: Sequence[str]) -> tuple[dict, str, Path]:
    """What an experiment and settings say, tracking's address and the output folder, for verbs that use a finished model."""
    from pipeline.config import experiment_of, load_values, parse_overrides
    from pipeline.site import tracking_address

    values = load_values(experiment, settings) if experiment else parse_overrides(settings)
    checked = experiment_of(values)
    output = Path(checked.output).expanduser().absolute()
    return values, tracking_address(checked, output), output
