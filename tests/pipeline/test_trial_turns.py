"""How many trials are under way, by schedulers that are told of trials as Ray Tune tells them."""

from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from pipeline.config import SweepConfig
from pipeline.trial_turns import scheduler


class Controller:
    """What a scheduler sees of Tune."""

    def __init__(self, search):
        self.search_alg, self.trials = search, []

    def get_trials(self) -> list:
        return self.trials

    def add(self, turns, *trials: SimpleNamespace) -> None:
        for trial in trials:
            turns.on_trial_add(self, trial)
            self.trials.append(trial)


def trial(name: str, status: str = Trial.PENDING) -> SimpleNamespace:
    made = SimpleNamespace(trial_id=name, status=status)
    made.set_status = lambda new: setattr(made, "status", new)
    return made


@pytest.mark.parametrize("kind", ["none", "asha"])
def test_restored_trials_take_turns_however_many_they_are(kind):
    turns = scheduler(SweepConfig(scheduler=kind), at_once=2)
    turns.set_search_properties("val/AP", "max")
    controller = Controller(SimpleNamespace(max_concurrent=8))
    controller.add(turns, trial("0", Trial.TERMINATED), *(trial(str(i)) for i in range(1, 5)))
    started = []
    for _ in range(4):
        if chosen := turns.choose_trial_to_run(controller):
            chosen.status = Trial.PENDING if started else Trial.RUNNING
            started.append(chosen.trial_id)
    assert started == ["1", "2"]
    controller.trials[1].status = Trial.ERROR
    assert turns.choose_trial_to_run(controller).trial_id == "3"


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_saved_limit_of_an_earlier_driver_is_replaced(wrapped):
    limited = SimpleNamespace(max_concurrent=8)
    turns = scheduler(SweepConfig(), at_once=3)
    Controller(SimpleNamespace(searcher=limited) if wrapped else limited).add(turns, trial("0"))
    assert limited.max_concurrent == 3


def test_asha_stops_what_falls_behind_and_never_what_is_merely_long():
    """train.epochs may be an axis of which Optuna chooses: no number of epochs is the last one for all."""
    turns = scheduler(SweepConfig(scheduler="asha", grace_epochs=2, reduction=2), at_once=4)
    turns.set_search_properties("val/AP", "max")
    controller = Controller(SimpleNamespace(max_concurrent=4))
    good, bad = trial("good"), trial("bad")
    controller.add(turns, good, bad)
    told = [turns.on_trial_result(controller, good, {"epoch": epoch, "val/AP": 0.5}) for epoch in range(1, 10_001)]
    assert set(told) == {TrialScheduler.CONTINUE}
    told = [turns.on_trial_result(controller, bad, {"epoch": epoch, "val/AP": 0.4}) for epoch in (1, 2)]
    assert told == [TrialScheduler.CONTINUE, TrialScheduler.STOP]
    assert [milestone for milestone, _ in turns._brackets[0]._rungs][::-1][:4] == [2, 4, 8, 16]
