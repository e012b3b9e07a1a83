"""A run's metrics and notes on their way to MLflow: written to disk first, sent in order by a thread, each point once.

MLflow keeps rows (key, step, time, value), and of equal rows one. So what may have arrived is sent again as it was, with its
first time, and changes nothing; a key and step that the run already has, with another value or time, is not sent. Both hold
across processes, since a journal keeps the rows until they have arrived: a retry on the same machine finds them there.

A caller waits for MLflow only while it answers: CALL_SECONDS at most, and not at all once a request hangs or has failed.
"""

import logging
import random
import threading
from collections.abc import Sequence
from contextlib import suppress

from mlflow.entities import Metric, RunTag

from pipeline.errors import TrackingError
from pipeline.tracking.access import explained, mlflow_client, one_line
from pipeline.tracking.spool import Journal, Line, abandoned

CALL_SECONDS = 3.0  # longest time that a call waits for its points to arrive
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0  # seconds between attempts while MLflow is out of reach

Entry = Metric | RunTag
log = logging.getLogger(__name__)


class Outbox:
    """What waits to be sent to one run. Its threads are its own business; every method may be called from any."""

    def __init__(self, uri: str, run_id: str):
        self._uri, self._run_id = uri, run_id
        self._steps: dict[str, set[int]] = {}  # steps already logged, by metric; looked up at a metric's first use
        self._changed = threading.Condition()  # guards all below
        self._pending: list[Entry] = []
        self._journal: Journal | None = None  # holds what is pending of this process
        self._inherited: list[Journal] = []  # and what is of dead ones
        self._on_disk = True  # all that is pending is in a journal
        self._sender: threading.Thread | None = None
        self._wake = threading.Event()  # cuts the sender's pause short
        self._trouble = ""  # why the last attempt failed; "" after success
        self._late = False  # a call waited in vain, and nothing has arrived since

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep entries and have them sent; waits a little for that. Never raises."""
        with self._changed:
            if not self._pending:
                self._inherit()
            self._pending += entries
            self._write(entries)
            self._start()
            if not self._trouble and not self._late:
                self._late = not self._changed.wait_for(lambda: not self._pending or self._trouble, CALL_SECONDS)

    def flush(self, seconds: float) -> str:
        """Wait until everything has arrived, the leavings of dead processes too; "" then. Else what is left, and where.

        After that others may pick up what is left; this process tries no longer.
        """
        with self._changed:
            self._inherit()
            if self._pending:
                self._start()
                self._wake.set()
            if self._changed.wait_for(lambda: not self._pending, seconds):
                return ""
            reason = self._trouble or "MLflow does not answer"
            places = [str(journal.path) for journal in (*self._inherited, self._journal) if journal]
            left = f"{len(self._pending)} points of run {self._run_id} could not be delivered within {seconds:.0f} s: {reason}"
            safe = self._on_disk
            self._give_up()
        kept = f"they are kept in {', '.join(places)}: `tood deliver` on this machine sends them, and so does going on with the run"
        return f"{left}; {kept if safe else 'the disk did not take them, so they are lost when this process ends'}"

    def last_step(self, key: str) -> int | None:
        """The last step at which this metric was logged, by this process or before it. Raises TrackingError."""
        with self._changed:
            waiting = [e.step for e in self._pending if isinstance(e, Metric) and e.key == key]
        return max([*self._logged_steps(key), *waiting], default=None)

    def _inherit(self) -> None:
        """Put what dead processes left of this run before what is pending."""
        for journal in reversed(abandoned(self._uri, self._run_id)):
            if journal.head.driver:
                journal.release()  # says how a run ended, which is not for its next process to tell
                continue
            self._inherited.insert(0, journal)
            self._pending[:0] = entries_of(journal.lines)

    def _write(self, entries: Sequence[Entry]) -> None:
        try:
            if self._journal is None:
                self._journal = Journal.create(self._uri, self._run_id)
            self._journal.append([_line(entry) for entry in entries])
        except OSError as error:
            if self._on_disk:
                log.warning("run %s: its points cannot be kept on disk (%s); they are in memory alone", self._run_id, error)
            self._on_disk = False

    def _start(self) -> None:
        """Have a thread send what is pending, unless one is at it already."""
        if self._sender is None:
            self._sender = threading.Thread(target=self._send, name=f"outbox {self._run_id}", daemon=True)
            self._sender.start()

    def _send(self) -> None:
        pause, me = FIRST_PAUSE, threading.current_thread()
        while True:
            with self._changed:
                if self._sender is not me:
                    return  # given up meanwhile
                if not self._pending:
                    self._sender = None
                    return
                batch = list(self._pending)
            trouble = self._attempt(batch)
            with self._changed:
                if self._sender is not me:
                    return
                before, self._trouble = self._trouble, trouble
                if not trouble:
                    sent = {id(entry) for entry in batch}  # inherited ones may have come before them meanwhile
                    self._pending = [entry for entry in self._pending if id(entry) not in sent]
                    self._late = False
                    if not self._pending:
                        self._arrived()
                self._changed.notify_all()
                count = len(self._pending)
            if not trouble:
                pause = FIRST_PAUSE
                if before:
                    log.warning("run %s: MLflow takes its points again, %d were delivered", self._run_id, len(batch))
                continue
            if not before:
                log.warning("%s; %d points are kept and sent later", trouble, count)
            self._wake.wait(random.uniform(0.5, 1) * pause)
            self._wake.clear()
            pause = min(2 * pause, LONGEST_PAUSE)

    def _attempt(self, batch: Sequence[Entry]) -> str:
        """Send; "" or why it failed."""
        try:
            tags = {entry.key: entry for entry in batch if isinstance(entry, RunTag)}
            metrics = [entry for entry in batch if isinstance(entry, Metric)]
            # of points with one key and step the first stays
            new = {(m.key, m.step): m for m in reversed(metrics) if m.step not in self._logged_steps(m.key)}
            self._log([*tags.values(), *reversed(new.values())])
            for key, step in new:
                self._steps[key].add(step)
        except TrackingError as error:
            return str(error)
        except Exception as error:  # a thread that dies of what nobody thought of would lose everything after
            return f"metrics of run {self._run_id}: {type(error).__name__}: {one_line(error)}"
        return ""

    def _log(self, entries: Sequence[Entry]) -> None:
        """Send; what MLflow refuses while it takes others is left out, so that it does not hold these up for ever."""
        refused: list[tuple[Entry, TrackingError]] = []

        def log_all(part: Sequence[Entry]) -> None:
            metrics = [entry for entry in part if isinstance(entry, Metric)]
            tags = [entry for entry in part if isinstance(entry, RunTag)]
            try:
                with explained(f"metrics of run {self._run_id}"):
                    mlflow_client(self._uri).log_batch(self._run_id, metrics=metrics, tags=tags)
            except TrackingError as error:
                if error.transient:
                    raise
                if len(part) == 1:
                    refused.append((part[0], error))
                else:
                    log_all(part[: len(part) // 2])
                    log_all(part[len(part) // 2 :])

        if entries:
            log_all(entries)
        if refused and len(refused) == len(entries):
            raise refused[0][1]
        for entry, error in refused:
            log.warning("run %s: %s is left out: %s", self._run_id, entry.key, error)

    def _logged_steps(self, key: str) -> set[int]:
        if key not in self._steps:
            with explained(f"history of {key} in run {self._run_id}"):
                self._steps[key] = {m.step for m in mlflow_client(self._uri).get_metric_history(self._run_id, key)}
        return self._steps[key]

    def _arrived(self) -> None:
        for journal in (*self._inherited, self._journal):
            if journal:
                with suppress(OSError):
                    journal.remove()
        self._inherited, self._journal, self._on_disk = [], None, True

    def _give_up(self) -> None:
        for journal in (*self._inherited, self._journal):
            if journal:
                journal.release()
        self._inherited, self._journal, self._sender = [], None, None
        if self._on_disk:
            self._pending = []


def entries_of(lines: Sequence[Line]) -> list[Entry]:
    """What a journal's lines stand for; others, such as half of one, are left out."""
    found: list[Entry] = []
    for line in lines:
        with suppress(KeyError, TypeError, ValueError):
            if "tag" in line:
                found.append(RunTag(str(line["tag"]), str(line["text"])))
            elif "key" in line:
                found.append(Metric(str(line["key"]), float(line["value"]), int(line["time"]), int(line["step"])))
    return found


def _line(entry: Entry) -> Line:
    if isinstance(entry, RunTag):
        return {"tag": entry.key, "text": entry.value}
    return {"key": entry.key, "value": entry.value, "time": entry.timestamp, "step": entry.step}
