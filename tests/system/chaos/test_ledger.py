"""What the ledger of a killed run is taken for: each fault that it can show is found."""

import pytest

from tests.system.chaos.ledger import account, faults_of


def lines(*told: tuple) -> list[dict]:
    """(what, number) a second apart; a batch's images are its number and the next."""
    events = []
    for second, (what, number, *pid) in enumerate(told):
        place = {"epoch": number // 2, "batch": number % 2, "rank": 0, "world": 1, "images": [number % 2 * 2, number % 2 * 2 + 1]}
        events.append({"what": what, "time": 100.0 + second, "pid": pid[0] if pid else 1, "step": number, **place})
    return events


THROUGH = lines(("begun", 0), ("batch", 0), ("batch", 1), ("begun", 2), ("batch", 2), ("batch", 3))


def judge(*told: tuple, interval: float = 60) -> list[str]:
    return faults_of(account(lines(*told), 2, "stored"), account(THROUGH, 2, "stored"), images=4, interval=interval)


def test_a_kill_that_did_no_harm():
    told = [("begun", 0), ("batch", 0), ("written", 1), ("stored", 1), ("batch", 1), ("begun", 1, 2), ("batch", 1, 2)]
    told += [("begun", 2, 2), ("batch", 2, 2), ("batch", 3, 2)]
    found = account(lines(*told), 2, "stored")
    assert (found.redone, found.lost) == ([1], [2.0])
    assert found.epochs == {0: [[0, 1], [2, 3]], 1: [[0, 1], [2, 3]]}
    assert judge(*told) == []


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ([("begun", 0), ("batch", 0), ("written", 1), ("stored", 1), ("begun", 0), ("batch", 0)], "went on from step 0 although"),
        ([("begun", 0), ("batch", 0), ("begun", 2), ("batch", 2)], "went on from step 2 after 1 steps"),
        ([("begun", 0), ("batch", 0), ("batch", 0)], "batch (0, 0) came twice"),
        ([("begun", 0), ("batch", 0), ("begun", 1), ("batch", 2)], "epoch 0: 2 images, 2 different ones, of 4"),
        ([("begun", 0), ("batch", 1), ("batch", 0)], "of the unkilled run"),
    ],
)
def test_each_fault_is_found(told, fault):
    assert any(fault in said for said in judge(*told))


def test_more_than_an_interval_done_again_is_a_fault():
    told = [("begun", 0), ("batch", 0), ("written", 1), ("stored", 1), ("batch", 1), ("begun", 2), ("batch", 2), ("batch", 3)]
    told += [("begun", 1, 2), ("batch", 1, 2), ("begun", 2, 2), ("batch", 2, 2), ("batch", 3, 2)]
    assert judge(*told) == []
    assert any("5.0 s were done again, of 3.0 s allowed" in fault for fault in judge(*told, interval=1))


def test_another_number_of_ranks_goes_on_where_the_batch_before_was_shared_by_others():
    events, second = [], 0

    def tell(what: str, rank: int, world: int, batch: int, images: tuple[int, ...] = ()) -> None:
        nonlocal second
        second += 1
        place = {"epoch": 0, "batch": batch, "rank": rank, "world": world, "images": list(images)}
        events.append({"what": what, "time": 100.0 + second, "pid": world, "step": batch, **place})

    for rank in (0, 1):
        tell("begun", rank, 2, 0)
        for batch in (0, 1):
            tell("batch", rank, 2, batch, (2 * batch + rank,))
    tell("begun", 0, 1, 1)  # the second is gone, and the batch that it had a part of is done again
    tell("batch", 0, 1, 1, (2, 3))
    tell("batch", 0, 1, 2, (4, 5))
    for rank in (0, 1):  # and back
        tell("begun", rank, 2, 3)
        tell("batch", rank, 2, 3, (6 + rank,))
    found = account(events, 4, "stored")
    assert found.epochs == {0: [[0, 1], [2, 3], [4, 5], [6, 7]]}
    assert (found.redone, found.faults) == ([1], [])
    assert faults_of(found, found, images=8, interval=60) == []
