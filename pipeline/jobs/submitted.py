"""Jobs on a cluster once they are submitted: follow, stop, and tell about them."""

import asyncio
import time
from collections.abc import Callable, Sequence

from pipeline.errors import ClusterError
from pipeline.jobs.server import Job, JobServer
from pipeline.jobs.submit import STOP_SECONDS, duration

QUIET_SECONDS = 60  # of silence, after which a line says that the job still runs
PATIENCE_SECONDS = 180  # that a lost connection is tried again
POLL_SECONDS = 1.0
EMPTY_SECONDS = 120  # that a stopped job's processes may take to end; Ray's own cleaners are slow where a machine is busy


def find(server: JobServer, wanted: str) -> Job:
    """The job of this id, or the only one whose id starts so. Raises ClusterError."""
    jobs = server.jobs()
    if exact := [job for job in jobs if job.id == wanted]:
        return exact[0]
    close = [job for job in jobs if job.id.startswith(wanted)]
    if len(close) == 1:
        return close[0]
    if close:
        raise ClusterError(f"{wanted}: is the beginning of {', '.join(job.id for job in close[:5])}; give one whole")
    raise ClusterError(f"{wanted}: {server.address} has no such job; `tood jobs` lists them")


def follow(server: JobServer, job_id: str, say: Callable[[str], None], note: Callable[[str], None]) -> Job:
    """Pass a job's log on, from its beginning to its end, through lost connections; the job as it ended.

    say: gets pieces of the log as they come, ends of line included; note: lines about the job.
    """
    return _Follower(server, job_id, say, note).run()


class _Follower:
    def __init__(self, server: JobServer, job_id: str, say: Callable[[str], None], note: Callable[[str], None]):
        self.server, self.job_id, self.say, self.note = server, job_id, say, note
        self.shown = 0  # characters of the log that were passed on
        self.heard = time.monotonic()  # the last time that anything came

    def run(self) -> Job:
        lost: float | None = None
        while True:
            try:
                job = self._wait_for_start()
                asyncio.run(self._tail())
                job = self._now()
                if job.over:
                    return job
                lost = None
            except ClusterError as error:
                if lost is None:
                    lost = time.monotonic()
                    self.note(f"{error}; trying again")
                elif time.monotonic() - max(lost, self.heard) > PATIENCE_SECONDS:
                    raise
            time.sleep(POLL_SECONDS)

    def _now(self) -> Job:
        if (job := self.server.find(self.job_id)) is None:
            raise ClusterError(f"{self.job_id}: is not known to {self.server.address} any more; was the cluster started anew?")
        return job

    def _wait_for_start(self) -> Job:
        told = time.monotonic() - QUIET_SECONDS + 5
        while (job := self._now()).status == "PENDING":
            if time.monotonic() - told > QUIET_SECONDS:
                told = time.monotonic()
                self.note(f"{job.id} waits to start: {job.message or 'no reason given'}")
            time.sleep(POLL_SECONDS)
        return job

    async def _tail(self) -> None:
        skip, stream = self.shown, self.server.tail(self.job_id)
        self.heard = time.monotonic()
        piece = asyncio.ensure_future(anext(stream, None))
        try:
            while True:
                done, _ = await asyncio.wait({piece}, timeout=QUIET_SECONDS)
                if not done:
                    job = self._now()  # a connection may be dead without knowing
                    self.note(f"{job.id} {job.status.lower()} for {duration(job.seconds())}")
                    if job.over:
                        return
                    continue
                if (text := piece.result()) is None:
                    return
                self.heard = time.monotonic()
                fresh, skip = text[skip:], max(0, skip - len(text))  # a new connection begins with what was shown already
                self.shown += len(fresh)
                if fresh:
                    self.say(fresh)
                piece = asyncio.ensure_future(anext(stream, None))
        finally:
            piece.cancel()


def stop(server: JobServer, job: Job, note: Callable[[str], None]) -> tuple[Job, list[str]]:
    """End a job and wait until nothing of it is left on the cluster; the job as it ended, and what would not go."""
    if not job.over:
        server.stop(job.id)
        note(f"{job.id}: asked to stop; it ends its trials first")
        deadline = time.monotonic() + STOP_SECONDS + 30
        while not (job := server.find(job.id) or job).over:
            if time.monotonic() > deadline:
                raise ClusterError(f"{job.id}: still runs {STOP_SECONDS + 30} s after it was told to stop; look at Ray's dashboard")
            time.sleep(POLL_SECONDS)
    return job, _until_nothing_is_held(server, job)


def _until_nothing_is_held(server: JobServer, job: Job) -> list[str]:
    deadline = time.monotonic() + EMPTY_SECONDS
    while held := server.holdings(job.ray_job) if job.ray_job else []:
        if time.monotonic() > deadline:
            return held
        time.sleep(POLL_SECONDS)
    return []


def facts(job: Job) -> dict:
    """A job as plain values."""
    return {
        "id": job.id,
        "status": job.status,
        "seconds": round(job.seconds(), 1),
        "started": job.started,
        "ended": job.ended,
        "exit_code": job.exit_code,
        "message": job.message,
        **{key.removeprefix("tood."): value for key, value in job.metadata.items() if key.startswith("tood.")},
    }


def table(jobs: Sequence[Job], width: int = 100) -> str:
    """One line a job, within `width` columns."""
    if not jobs:
        return "no jobs"
    rows = [("job", "status", "for", "commit", "command")]
    for job in jobs:
        commit = job.metadata.get("tood.commit", "")[:8] + ("+" if job.metadata.get("tood.dirty") == "yes" else "")
        command = job.metadata.get("tood.command", job.entrypoint).removeprefix("tood ")
        rows.append((job.id, job.status.lower(), duration(job.seconds()), commit or "-", command))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for row in rows:
        line = "  ".join([*(cell.ljust(size) for cell, size in zip(row, widths, strict=False)), row[4]])
        lines.append(line if len(line) <= width else f"{line[: width - 3]}...")
    return "\n".join(line.rstrip() for line in lines)


def details(job: Job, held: Sequence[str] = ()) -> str:
    """Everything about a job, a line each."""
    named = {key: value for key, value in facts(job).items() if value not in (None, "", [])} | {"seconds": duration(job.seconds())}
    for key in ("started", "ended"):
        if key in named:
            named[key] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(named[key]))
    named["ran for"] = named.pop("seconds")
    if held:
        named["holds"] = ", ".join(held)
    return "\n".join(f"{key:<11} {' '.join(str(value).split())}" for key, value in named.items())


def exit_code(job: Job) -> int:
    """What the command that followed a job returns: 0, or as the job's own did."""
    if job.status == "SUCCEEDED":
        return 0
    return job.exit_code if job.exit_code in (1, 2) else 1
