"""Following, stopping and telling about jobs, on a server that loses connections when it is told to."""

import pytest

from pipeline.errors import ClusterError
from pipeline.jobs import submitted as jobs
from pipeline.jobs.server import Job
from pipeline.jobs.submitted import details, exit_code, facts, find, follow, stop, table

LOG = "first\nsecond\nthird\n"


class Server:
    """A job with the log LOG, sent in `pieces`; each connection ends as `connections` says, the last with the job."""

    address = "http://lab"

    def __init__(self, connections: list[list[str]], states: list[str], held: list[list[str]] | None = None):
        self.connections, self.states, self.held = connections, states, held or []
        self.told_to_stop = False

    def jobs(self) -> list[Job]:
        return [self.find("job")]

    def find(self, job_id: str) -> Job | None:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if state == "lost":
            raise ClusterError("no connection")
        return Job(job_id, state, ray_job="01") if state else None

    async def tail(self, job_id: str):
        for piece in self.connections.pop(0):
            if piece == "lost":
                raise ClusterError("no connection")
            yield piece

    def stop(self, job_id: str) -> None:
        self.told_to_stop = True

    def holdings(self, ray_job: str) -> list[str]:
        return self.held.pop(0) if self.held else []


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.001)


def followed(server: Server) -> tuple[str, list[str], Job]:
    shown, notes = [], []
    job = follow(server, "job", shown.append, notes.append)
    return "".join(shown), notes, job


def test_a_log_is_passed_on_to_the_jobs_end():
    shown, notes, job = followed(Server([["first\nsec", "ond\nthird\n"]], ["RUNNING", "SUCCEEDED"]))
    assert (shown, notes, job.status) == (LOG, [], "SUCCEEDED")


def test_a_lost_connection_is_made_again_and_nothing_is_shown_twice():
    connections = [["first\nsec", "lost"], ["lost"], ["first\n", "second\nth"], [LOG]]
    states = ["PENDING", "RUNNING", "lost", "RUNNING", "RUNNING", "RUNNING", "RUNNING", "FAILED"]
    shown, notes, job = followed(Server(connections, states))
    assert (shown, job.status) == (LOG, "FAILED")
    assert any("trying again" in note for note in notes)


def test_a_cluster_that_stays_away_is_given_up(monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", 0.05)
    with pytest.raises(ClusterError, match="no connection"):
        followed(Server([["first\n", "lost"]], ["RUNNING", "lost"]))


def test_a_cluster_that_was_started_anew_is_told(monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(ClusterError, match="started anew"):
        followed(Server([[]], [""]))


def test_silence_is_broken_by_a_line_about_the_job(monkeypatch):
    import asyncio

    monkeypatch.setattr(jobs, "QUIET_SECONDS", 0.01)
    server = Server([], ["RUNNING"] * 4 + ["SUCCEEDED"])

    async def silent(job_id: str):
        await asyncio.sleep(0.2)
        yield LOG

    server.tail = silent
    shown, notes, _ = followed(server)
    assert "running for 0 s" in notes[0]
    assert shown in ("", LOG)  # the job may be over before its last line


def test_stop_waits_until_nothing_is_held():
    server = Server([], ["RUNNING", "RUNNING", "STOPPED"], [["actor A"], ["placement group B"], []])
    job, left = stop(server, Job("job", "RUNNING", ray_job="01"), lambda line: None)
    assert server.told_to_stop
    assert (job.status, left, server.held) == ("STOPPED", [], [])


def test_stop_tells_what_would_not_go(monkeypatch):
    monkeypatch.setattr(jobs, "EMPTY_SECONDS", 0.01)
    server = Server([], ["STOPPED"], [["actor A"]] * 1000)
    assert stop(server, Job("job", "STOPPED", ray_job="01"), lambda line: None)[1] == ["actor A"]
    assert not server.told_to_stop  # it had ended


def test_a_job_is_found_by_the_beginning_of_its_id():
    class Known:
        address = "http://lab"

        def jobs(self):
            return [Job(name, "RUNNING") for name in ("sweep-a-1", "sweep-a-1-2", "train-b-3")]

    assert find(Known(), "sweep-a-1").id == "sweep-a-1"
    assert find(Known(), "train").id == "train-b-3"
    with pytest.raises(ClusterError, match="is the beginning of sweep-a-1, sweep-a-1-2"):
        find(Known(), "sweep")
    with pytest.raises(ClusterError, match="has no such job"):
        find(Known(), "x")


def test_the_table_keeps_to_its_width():
    told = {"tood.commit": "a" * 40, "tood.dirty": "yes", "tood.command": "tood sweep " + "x" * 200, "tood.verb": "sweep"}
    listed = [Job("sweep-demo-0123456789ab", "RUNNING", started=1.0, ended=3726.0, metadata=told), Job("raysubmit_x", "PENDING")]
    lines = table(listed).splitlines()
    assert max(map(len, lines)) == 100
    assert "sweep-demo-0123456789ab  running  1 h 2 min  aaaaaaaa+  sweep xxx" in lines[1]
    assert table([]) == "no jobs"
    assert facts(listed[0])["verb"] == "sweep"
    assert "ran for     1 h 2 min" in details(listed[0], ["actor A"])
    assert "holds       actor A" in details(listed[0], ["actor A"])


@pytest.mark.parametrize(
    ("status", "own", "code"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 1, 1), ("FAILED", 137, 1), ("STOPPED", None, 1)]
)
def test_exit_codes(status, own, code):
    assert exit_code(Job("x", status, exit_code=own)) == code
