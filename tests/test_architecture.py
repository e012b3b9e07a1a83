"""Which way imports point: the library knows no launcher, tracker or store, and optional packages only where used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOREIGN_TO_LIBRARY = {"ray", "mlflow", "boto3", "botocore", "omegaconf", "optuna", "pipeline", "experiments", "tests"}
OPTIONAL = {"hotcoco", "pycocotools", "sklearn", "matplotlib", "onnx", "onnxruntime"}


def imports(source: str) -> list[tuple[str, bool]]:
    """(top-level package, inside a function?) of every import, `importlib.import_module("...")` too."""
    found = []

    def visit(node: ast.AST, deferred: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name.split(".")[0], deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append((node.module.split(".")[0], deferred))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found.extend((a.value.split(".")[0], deferred) for a in node.args if isinstance(a, ast.Constant))
        deferred = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, deferred)

    visit(ast.parse(source), False)
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def violations(paths: list[Path], forbidden) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {package}"
        for path in paths
        for package, deferred in imports(path.read_text())
        if forbidden(package, deferred)
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import ray.train as rt, os", [("ray", False), ("os", False)]),
        ("from mlflow.tracking import x", [("mlflow", False)]),
        ("from . import boto3", []),
        ("def f():\n  if x:\n    import ray", [("ray", True)]),
        ("class C:\n  import ray\n  def f(self): import os", [("ray", False), ("os", True)]),
        ("try:\n  import ray\nexcept ImportError: pass", [("ray", False)]),
        ("import importlib\nm = importlib.import_module('ray.tune')", [("importlib", False), ("ray", False)]),
    ],
)
def test_the_walk_sees_imports_however_they_are_written(source, expected):
    assert imports(source) == expected


def test_the_library_never_imports_the_pipeline_or_what_it_runs_on():
    assert len(files("tood")) > 20
    assert violations(files("tood"), lambda package, deferred: package in FOREIGN_TO_LIBRARY) == []


def test_optional_packages_are_imported_only_inside_functions():
    assert violations(files("tood"), lambda package, deferred: package in OPTIONAL and not deferred) == []
    used = {package for path in files("tood") for package, _ in imports(path.read_text())}
    assert {"hotcoco", "pycocotools", "sklearn"} <= used  # else the rule above holds nothing


def test_the_pipeline_builds_on_the_library_and_not_on_tests():
    pipeline = files("pipeline")
    assert any(package == "tood" for path in pipeline for package, _ in imports(path.read_text()))
    assert violations(pipeline, lambda package, deferred: package in {"tests", "experiments"}) == []


def test_experiments_are_data_and_hold_no_code():
    assert files("experiments") == []


def test_who_computes_nothing_imports_neither_torchvision_nor_matplotlib():
    """A trial's driver and a run's controller start for each trial; torchvision alone brings torch's compiler, a second's work."""
    code = "import pipeline.trials, sys; print(*{'torchvision', 'torch._dynamo', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
