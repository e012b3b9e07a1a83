"""Timings: what a ratio says, what disturbs it and what does not, and that every part of a training can be timed."""

import math
import random
import time

import pytest
import torch

from tests.tiny import write_experiment
from tood.bench.parts import OPERATIONS, operations
from tood.bench.timing import Turns, interleaved, quick, reference_operation, timing_of
from tood.config import build
from tood.errors import ConfigError
from tood.recipe import Recipe

CPU = torch.device("cpu")


def test_a_ratio_says_how_much_longer_a_call_takes():
    timing = interleaved(lambda: time.sleep(0.006), lambda: time.sleep(0.002), seconds=0.3)
    assert timing.ratio == pytest.approx(3, rel=0.3)
    assert timing.pairs >= 15


def test_calls_that_settle_an_operation_do_not_count():
    called = []
    turns = Turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, CPU, settle=1)
    turns.run(0, 2)
    assert called == list("aabbaabb")
    assert [len(times) for times in turns.times.values()] == [2, 2]


def test_an_unsteady_machine_is_timed_longer_up_to_a_limit():
    draw = random.Random(0)

    def unsteady() -> None:
        time.sleep(draw.choice([0.0005, 0.004]) if time.perf_counter() % 0.1 < 0.05 else 0.004)

    started = time.perf_counter()
    timing = interleaved(unsteady, lambda: None, seconds=0.05, pairs=3)
    assert timing.pairs > 3
    assert 0.05 < time.perf_counter() - started < 2


def test_calls_that_were_interrupted_and_a_machine_that_slows_do_not_count():
    calm = timing_of([2.0] * 50, [1.0] * 50)
    assert (calm.ratio, calm.error) == (2.0, 0.0)
    assert timing_of([2.0, 2.0, 9.0] * 20, [1.0, 7.0, 1.0] * 20).ratio == 2.0
    slowing = [1 + i / 50 for i in range(50)]
    assert timing_of([2 * s for s in slowing], slowing).ratio == 2.0


def test_the_error_is_the_disagreement_of_successive_groups():
    apart = [1.0] * 10 + [1.2] * 10 + [1.0] * 30
    assert timing_of(apart, [1.0] * 50).error == pytest.approx(math.log(1.2) / 5, rel=1e-6)
    assert math.isnan(timing_of([1.0] * 4, [1.0] * 4).error)


def test_quick_is_a_low_quantile():
    assert quick([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == 2.0
    assert quick([3.0]) == 3.0


def test_every_part_of_a_training_can_be_timed(tmp_path):
    import yaml

    values = yaml.safe_load(write_experiment(tmp_path).read_text())
    values.pop("output")
    recipe = build(Recipe, values)
    reference = reference_operation(CPU)
    with operations(recipe, CPU) as timed:
        assert tuple(timed) == OPERATIONS
        for operation in timed.values():
            timing = interleaved(operation, reference, seconds=0, pairs=3)
            assert timing.ratio > 0
    with pytest.raises(ConfigError, match="'stepp' is not timed"), operations(recipe, CPU, ("stepp",)):
        pass
