"""The bench's command: what it prints, what it refuses, and that each option has an effect."""

import json
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.autograd import DeviceType
from torch.nn.parallel import DistributedDataParallel

from pipeline.cli import main
from tests.tiny import write_dataset
from tood.bench import cases, files, report
from tood.bench.__main__ import main as alone
from tood.bench.arguments import GROWTH, NAMES
from tood.bench.command import GROUPS
from tood.bench.growth import growth_of
from tood.bench.report import measure, table, watched

CPU = torch.device("cpu")
QUICK = ["--quick", "--seconds", "0"]


def bench(capsys, *arguments: str) -> dict:
    assert main(["bench", *arguments, *QUICK, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_group_is_timed_in_turn_and_compared_with_its_first_case():
    made: list[str] = []
    group = cases.Group("g", "work", [cases.Case("a", lambda: made.append("a")), cases.Case("b", lambda: made.append("b"))], 0, 4)
    first, second = measure(group, CPU, 0)
    assert "".join(made) == "ab" * 4
    assert first.faster == 1.0
    assert (first.calls, second.first) == (4, "a")
    assert second.low <= second.seconds <= second.high


def test_the_step_is_timed_in_a_group_of_ranks_too_which_ends_with_it():
    groups = cases.steps(cases.QUICK, CPU)
    for _ in range(2):
        next(groups)
        assert not dist.is_initialized()
    shared = {case.name.strip(): case.operation for case in next(groups).cases}["in DDP"]
    assert (dist.get_world_size(), dist.get_backend()) == (1, "gloo")
    called = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            DistributedDataParallel, "forward", lambda self, *a: called.append(self.gradient_as_bucket_view) or self.module(*a)
        )
        shared()
    assert called == [True]
    assert next(groups, None) is None
    assert not dist.is_initialized()


def test_on_a_gpu_each_way_to_load_is_timed_until_it_has_arrived_too():
    (group,) = files.loaders(cases.QUICK, torch.device("cuda"))
    ways = ("a photograph", "resized on the device", "and decoded there")
    assert [case.name for case in group.cases] == [name for way in ways for name in (way, f"{way}, arrived")]


def test_steps_are_training_s_own_with_the_stem_frozen_and_norms_constant():
    model = cases._detector(cases.QUICK, torch.device("cpu"))
    assert model.training
    norms = [part for part in model.backbone.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert any(not parameter.requires_grad for parameter in model.backbone.parameters())


def test_units_are_what_times_are_of():
    call = cases.Case("a", lambda: sum(range(20_000)))
    whole, share = (measure(cases.Group("g", "", [c]), CPU, 0.1)[0] for c in (call, call._replace(units=1000)))
    assert share.seconds < whole.seconds / 10


def test_of_a_call_on_a_gpu_its_memory_and_its_waits_are_told(monkeypatch):
    """There is none here; torch's own words for a wait, as it says them in this mode."""
    modes = []
    played = {
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "set_sync_debug_mode": modes.append,
        "memory_allocated": lambda: 2**30,
        "max_memory_allocated": lambda: 5 * 2**29,
    }
    for name, play in played.items():
        monkeypatch.setattr(torch.cuda, name, play)

    def event(device: DeviceType, microseconds: float, remark: bool = False) -> SimpleNamespace:
        return SimpleNamespace(device_type=device, self_device_time_total=microseconds, is_user_annotation=remark)

    events = [
        event(DeviceType.CUDA, 2e5),
        event(DeviceType.CUDA, 1e5),
        event(DeviceType.CUDA, 9e5, True),
        event(DeviceType.CPU, 3e5),
    ]
    monkeypatch.setattr(report, "profile", lambda activities: nullcontext(SimpleNamespace(key_averages=lambda: events)))

    calls = []

    def operation() -> None:
        calls.append(modes[-1])
        if modes[-1] != "warn":
            return
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert watched(operation) == (1.5, 2, pytest.approx(0.3))
    assert modes == calls == ["warn", "default"]
    row = measure(cases.Group("g", "", [cases.Case("a", lambda: None)], 0, 1), CPU, 0)[0]
    said = table([row._replace(gpu_memory=1.5, gpu_waits=2, gpu_busy=0.987)])
    assert "a second; 1.5 GiB beside weights; the host waits 2 times; the GPU is busy 99 %" in said


def test_a_table_is_at_most_100_columns(capsys):
    assert main(["bench", "assign", "decode", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "TAL, inside" in printed
    assert max(map(len, printed.splitlines())) <= 100
    row = measure(cases.Group("g", "", [cases.Case("a", lambda: None, peer=0.114)], 0, 1), CPU, 0)
    assert "114.0 ms" in table(row)


def test_json_holds_the_machine_and_every_case(capsys):
    found = bench(capsys, "assign", "loader", "--threads", "1")
    assert found["machine"]["threads"] == 1
    assert {row["group"] for row in found["rows"]} == {"assign", "loader"}
    assert all(row["seconds"] > 0 and row["peer"] is None for row in found["rows"])
    assert bench(capsys, "decode", "--threads", "2")["machine"]["threads"] == 2


def test_the_names_are_those_that_can_be_measured():
    assert set(NAMES) == {*GROUPS, GROWTH}


def test_photographs_may_be_ones_own(capsys, tmp_path):
    root = write_dataset(tmp_path / "own")
    settings = [f"data.root={root}", "data.train.annotations=train.json", "data.train.images=train", "data.long_side=64"]
    row, *_ = bench(capsys, "loader", *settings)["rows"]
    assert str(root) in row["work"]
    assert "64x" in row["work"]


def test_seconds_are_how_long_a_group_is_timed(capsys):
    assert main(["bench", "assign", "--quick", "--json", "--seconds", "0.3"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["calls"] > 5


def test_it_runs_where_only_torch_is_installed():
    """In a process that cannot import what only the pipeline needs."""
    block = "import sys; sys.modules.update(dict.fromkeys(['ray', 'mlflow', 'omegaconf', 'boto3', 'matplotlib']))"
    code = f"{block}; from tood.bench.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "assign", *QUICK, "--json"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["rows"][0]["calls"] == 5


def test_a_profile_leaves_a_trace_and_the_ten_dearest_operators(capsys, tmp_path):
    assert main(["bench", "assign", *QUICK, "--profile", str(tmp_path)]) == 0
    traces = list(tmp_path.glob("*.json"))
    assert len(traces) == 9
    assert json.loads(traces[0].read_text())["traceEvents"]
    part = capsys.readouterr().out.split("assign, TAL, all: ")[1].split("\n\n")[0]
    assert len(part.splitlines()) == 11
    assert part.count("aten::") >= 8


def test_growth_is_fitted_and_drawn(capsys, tmp_path):
    picture = tmp_path / "plots/growth.png"
    found = bench(capsys, "growth", "--plot", str(picture))["growth"]
    assert {(g["what"], g["over"]) for g in found} >= {("assign TAL, all", "images"), ("assign ATSS", "objects an image")}
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_an_exponent_is_that_of_the_power_law(exponent):
    sizes = [1, 2, 4, 8]
    times = [[3 * size**exponent, 3 * size**exponent, 100.0] for size in sizes]
    assert growth_of("x", "y", sizes, times).exponent == pytest.approx(exponent)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stepp"], "'stepp' is not measured; choose from step, assign"),
        (["data.root=x"], "nothing to measure"),
        (["assign", "data.root=x"], "add loader to assign"),
        (["loader", "train.epochs=3"], "train.epochs: only data.KEY=VALUE"),
        (["loader", "data.rot=x"], "data.rot"),
        (["loader", "data.root=/nowhere"], "/nowhere"),
        (["assign", "--plot", "x.png"], "add growth"),
        (["assign", "--threads", "0"], "--threads"),
        (["assign", "--seconds", "-1"], "--seconds"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, said, capsys):
    assert main(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_command_without_the_pipeline_refuses_alike(capsys):
    assert alone(["stepp"]) == 2
    assert "'stepp' is not measured" in capsys.readouterr().err
