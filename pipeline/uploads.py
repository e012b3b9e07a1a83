"""Checkpoints on their way to the store, in a thread of their own: no step waits for one, none counts before it is there."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future


class Uploads:
    """One upload at a time, in the order they came."""

    def __init__(self):
        self._changed = threading.Condition()
        self._waiting: deque[_Upload] = deque()
        self._busy = self._closed = False
        self._error: BaseException | None = None
        threading.Thread(target=self._work, name="uploads", daemon=True).start()

    def put(self, work: Callable[[], None]) -> Future:
        """An upload that has to happen; the future is done when it has, and holds what it raised. After that none is begun."""
        return self._add(_Upload(work))

    def offer(self, work: Callable[[], None], dropped: Callable[[], None]) -> Future:
        """One that gives way: if it still waits when a newer upload comes, it is not carried out but `dropped`."""
        return self._add(_Upload(work, dropped))

    def wait(self) -> None:
        """Until nothing waits or is under way. Raises what an upload raised."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy)
            if self._error:
                raise self._error

    def close(self) -> None:
        """End the thread; what waits is not begun."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _add(self, upload: "_Upload") -> Future:
        with self._changed:
            if self._error:
                upload.future.set_exception(self._error)
            else:
                if self._waiting and self._waiting[-1].dropped:
                    self._waiting.pop().drop()
                self._waiting.append(upload)
                self._changed.notify_all()
        return upload.future

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                upload, self._busy = self._waiting.popleft(), True
            try:
                upload.work()
                upload.future.set_result(None)
            except BaseException as error:  # whatever it was, it belongs to who waits for it
                with self._changed:
                    self._error = error
                    for other in self._waiting:
                        other.future.set_exception(error)
                    self._waiting.clear()
                upload.future.set_exception(error)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()


class _Upload:
    def __init__(self, work: Callable[[], None], dropped: Callable[[], None] | None = None):
        self.work, self.dropped, self.future = work, dropped, Future()

    def drop(self) -> None:
        self.dropped()
        self.future.set_result(None)
