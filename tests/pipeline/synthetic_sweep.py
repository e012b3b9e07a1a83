"""A sweep that never ran, as it would stand in MLflow: written straight into the tables, for thousands of runs take minutes."""

import uuid
from pathlib import Path

import numpy as np
import sqlalchemy

from pipeline.config import experiment_of, to_yaml
from pipeline.experiment_files import load_values
from pipeline.tracking.access import connect
from pipeline.tracking.runs import SWEEP, Run, experiment_id
from tests.tiny import write_experiment

SWEEP_SECTION = """
sweep:
  search: random
  samples: {samples}
  space:
    model.objective.alpha: [0.5, 0.75, 1.0, 1.25, 1.5]
    model.objective.beta: [2.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    model.objective.m: {{int: [5, 20]}}
    train.lr: {{loguniform: [0.001, 0.1]}}
    model.layers: [2, 4, 6]
    head:
      choices:
        t_head: {{model.tower: t_head}}
        parallel: {{model.tower: parallel}}
"""
EPOCHS = 12


def write_sweep(folder: Path, trials: int, seed: int = 0, name: str = "synthetic-sweep") -> tuple[str, str]:
    """MLflow's address and the sweep's name; AP is best near alpha 1, beta 6, m 13 and lr 0.01. One in fifty trials has failed."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    connect(uri)
    values = load_values(str(write_experiment(folder, SWEEP_SECTION.format(samples=trials))))
    experiment = experiment_id(uri, "synthetic")
    generator = np.random.default_rng(seed)
    tables: dict[str, list[dict]] = {name: [] for name in ("runs", "params", "tags", "metrics", "latest_metrics")}
    for place in range(trials):
        _trial(tables, experiment, name, place, generator, folder)
    engine = sqlalchemy.create_engine(uri)
    metadata = sqlalchemy.MetaData()
    metadata.reflect(engine, only=list(tables))
    with engine.begin() as connection:
        for table, rows in tables.items():
            connection.execute(metadata.tables[table].insert(), rows)
    engine.dispose()
    summary = Run.open(uri, experiment, name, f"sweep {name}", {SWEEP: name, "tood.kind": "sweep"})
    summary.text(to_yaml(experiment_of(values)), "experiment.yaml")
    summary.finish()
    return uri, name


def _trial(tables: dict[str, list[dict]], experiment: str, sweep: str, place: int, generator: np.random.Generator, folder: Path):
    run_id = uuid.UUID(int=generator.integers(2**63) << 64 | place).hex
    alpha = float(generator.choice([0.5, 0.75, 1.0, 1.25, 1.5]))
    beta = float(generator.choice([2.0, 4.0, 5.0, 6.0, 7.0, 8.0]))
    m, lr = int(generator.integers(5, 21)), float(np.exp(generator.uniform(np.log(0.001), np.log(0.1))))
    layers, head = int(generator.choice([2, 4, 6])), str(generator.choice(["t_head", "parallel"]))
    ap = 0.40 - 0.05 * (alpha - 1) ** 2 - 0.002 * (beta - 6) ** 2 - 0.0003 * (m - 13) ** 2 - 0.03 * np.log10(lr / 0.01) ** 2
    ap += 0.01 * (head == "t_head") + 0.004 * layers + 0.006 * generator.normal()
    failed = place % 50 == 49
    params = {"alpha": alpha, "beta": beta, "m": m, "lr": lr, "layers": layers, "head": head, "seed": 0, "epochs": EPOCHS}
    start = 1_700_000_000_000 + 60_000 * place
    tables["runs"].append(
        {
            "run_uuid": run_id,
            "name": f"alpha={alpha:g} beta={beta:g} m={m}",
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "",
            "status": "FAILED" if failed else "FINISHED",
            "start_time": start,
            "end_time": start + int(60_000 * (4 + layers * generator.uniform(0.9, 1.2))),
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": f"{(folder / 'artifacts' / run_id / 'artifacts').as_uri()}",
            "experiment_id": int(experiment),
        }
    )
    texts = {key: f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value) for key, value in params.items()}
    tables["params"] += [{"run_uuid": run_id, "key": key, "value": text} for key, text in texts.items()]
    tags = {SWEEP: sweep, "tood.kind": "trial", "tood.outcome": "failed" if failed else "finished"}
    tables["tags"] += [{"run_uuid": run_id, "key": key, "value": value} for key, value in tags.items()]
    if failed:
        return
    curve = ap * (1 - np.exp(-np.arange(1, EPOCHS + 1) / 3)) / (1 - np.exp(-EPOCHS / 3))
    for epoch, value in enumerate(curve, start=1):
        point = {"run_uuid": run_id, "step": 10 * epoch, "timestamp": start + epoch, "is_nan": False}
        rows = [{**point, "key": "val/AP", "value": float(value)}, {**point, "key": "epoch", "value": float(epoch)}]
        tables["metrics"] += rows
    best = {**point, "step": 0, "key": "best_AP", "value": float(curve.max())}
    tables["metrics"].append(best)
    tables["latest_metrics"] += [*rows, best]
