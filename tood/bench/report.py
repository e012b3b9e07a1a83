"""What was measured, as rows, a table and JSON; on what machine; and profiles."""

import os
import platform
import re
import statistics
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tood import __version__
from tood.bench.cases import PEER, Group
from tood.bench.growth import Growth
from tood.bench.ratio import Ratio
from tood.bench.timing import Operation, Turns, reference_operation

REFERENCE = "reference"
DEAREST = 10  # operators that a profile's table shows


class Row(NamedTuple):
    group: str
    work: str
    case: str
    seconds: float  # median
    low: float  # quantile .1
    high: float  # quantile .9
    calls: int
    references: float  # median over that of the reference operation, timed in turn
    first: str  # the group's first case, and how many times as fast as it this one is: the median over rounds
    faster: float
    peer: float | None
    gpu_memory: float | None = None  # GiB, at most, beside what was held before the call: weights, the optimizer's state
    gpu_waits: int | None = None  # of the host for the device in a call, as far as torch notices
    gpu_busy: float | None = None  # what kernels and copies take, summed over streams, over the median time; at most 1


def measure(group: Group, device: torch.device, seconds: float) -> list[Row]:
    """The cases of a group and the reference operation, in turn."""
    operations = {case.name: case.operation for case in group.cases}
    turns = Turns({**operations, REFERENCE: reference_operation(device)}, device, group.settle)
    turns.warm_up(group.warm_ups)
    turns.run(seconds, group.rounds)
    first, reference = turns.times[group.cases[0].name], statistics.median(turns.times[REFERENCE])
    rows = []
    for case in group.cases:
        own = [call / case.units for call in turns.times[case.name]]
        shares = [a / b for a, b in zip(first, turns.times[case.name], strict=True)]
        ordered, median = sorted(own), statistics.median(own)
        low, high = (ordered[round(q * (len(own) - 1))] for q in (0.1, 0.9))
        row = (median, low, high, len(own), median / reference, group.cases[0].name, statistics.median(shares), case.peer)
        on_gpu = ()
        if device.type == "cuda" and group.on_device:
            memory, waits, busy = watched(case.operation)
            on_gpu = memory, waits, min(1.0, busy / case.units / median)
        rows.append(Row(group.name, group.work, case.name, *row, *on_gpu))
    return rows


def watched(operation: Operation) -> tuple[float, int, float]:
    """Of more calls on a GPU: GiB that they take at most, how often the host waited for the device, seconds that it was at work."""
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            operation()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    memory, waits = (
        (torch.cuda.max_memory_allocated() - held) / 2**30,
        sum("called a synchronizing" in str(each.message) for each in said),
    )
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        operation()
    return memory, waits, sum(event.self_device_time_total for event in found.key_averages() if _on_device(event)) / 1e6


def _on_device(event) -> bool:
    """Whether a profile's event is a kernel or a copy: neither an operator, which has its kernels' time too, nor a remark."""
    return event.device_type == DeviceType.CUDA and not event.is_user_annotation


def machine() -> dict[str, Any]:
    """Where it was measured, with what."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        processor = next(iter(re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())), processor)
    return {
        "processor": processor,
        "vector": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "tood": __version__,
    }


# -- words -----------------------------------------------------------------------------------------------------------


def machine_line(found: dict[str, Any]) -> str:
    what = f"{found['processor']} ({found['vector']}), {found['cores']} cores, {found['threads']} threads, load {found['load']}"
    versions = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "torchvision", "tood"))
    return f"{what}{', ' + found['gpu'] if found['gpu'] else ''}\n{versions}"


def table(rows: Sequence[Row]) -> str:
    """The rows of a group, at most 100 columns."""
    lines = [f"{rows[0].group}: {rows[0].work}"]
    lines.append(f"  {'':<26}{'median':>10}{'10 %':>10}{'90 %':>10}{'calls':>6}{'/ref':>9}{'speed-up':>10}{'peer':>10}")
    for row in rows:
        times = "".join(f"{duration(s):>10}" for s in (row.seconds, row.low, row.high))
        peer = duration(row.peer) if row.peer else ""
        lines.append(f"  {row.case:<26}{times}{row.calls:>6}{row.references:>9.3g}{row.faster:>9.2f}x{peer:>10}".rstrip())
        if row.gpu_memory is not None:
            lines.append(
                f"    {1 / row.seconds:.1f} a second; {row.gpu_memory:.1f} GiB beside weights; "
                f"the host waits {row.gpu_waits} times; the GPU is busy {100 * row.gpu_busy:.0f} %"
            )
    return "\n".join(lines)


def legend(rows: Sequence[Row]) -> str:
    lines = ["/ref: over the reference operation, timed in turn; speed-up: over the group's first line"]
    return "\n".join([*lines, *([f"peer, as published: {PEER}"] if any(row.peer for row in rows) else [])])


def growth_line(growth: Growth) -> str:
    ends = f"{duration(growth.seconds[0])} at {growth.sizes[0]}, {duration(growth.seconds[-1])} at {growth.sizes[-1]}"
    return f"  {growth.what:<22}over {growth.over:<18}exponent {growth.exponent:5.2f}   {ends}"


def ratio_line(ratio: Ratio) -> str:
    times = f"{duration(ratio.seconds)}, {ratio.of} {duration(ratio.seconds_of)}"
    return f"  {ratio.what:<26}{ratio.ratio:5.2f} ({ratio.low:.2f} to {ratio.high:.2f}: 95 % of draws)   {times}"


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} us"


# -- profiles --------------------------------------------------------------------------------------------------------


def profiles(group: Group, folder: Path, device: torch.device) -> Iterator[str]:
    """One call of each case under torch's profiler: a trace in `folder`, and the operators that cost most by themselves."""
    on_gpu = device.type == "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    for case in group.cases:
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=kinds) as found:
            case.operation()
        path = folder / f"{re.sub(r'[^a-z0-9]+', '_', f'{group.name} {group.work} {case.name}'.lower())}.json"
        found.export_chrome_trace(str(path))
        operators = [event for event in found.key_averages() if event.device_type == DeviceType.CPU]
        events = [event for event in operators if not event.key.startswith(("cuda", "ProfilerStep"))]
        cost = (lambda e: e.self_device_time_total) if on_gpu else (lambda e: e.self_cpu_time_total)
        total = sum(map(cost, events)) or 1
        lines = [f"{group.name}, {case.name}: {path}"]
        for event in sorted(events, key=cost, reverse=True)[:DEAREST]:
            lines.append(
                f"  {event.key[:56]:<56}{event.count:>7} calls{cost(event) / 1e3:>10.1f} ms{100 * cost(event) / total:>6.1f} %"
            )
        yield "\n".join(lines)
