"""A thread for each target of a tracker: a slow or broken one never delays training."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

MAX_WAITING = 10_000  # rows that wait for a target; beyond that the oldest are dropped
RETRY_S = 5.0  # pause after an error
CLOSE_TIMEOUT_S = 30.0  # longest wait for a target at the end of training

logger = logging.getLogger(__name__)


class Background:
    """Passes rows to a sink in a thread; after an error, warned of once, it tries again."""

    def __init__(self, name: str, open_sink: Callable[[], Any]) -> None:
        self._name, self._open_sink, self._failed = name, open_sink, False
        self._rows: deque[Any] = deque(maxlen=MAX_WAITING)
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, row: Any) -> None:
        self._rows.append(row)
        self._wake.set()

    def close(self, failed: bool) -> None:
        self._failed = failed
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        sink, warned, closing = None, False, False
        while not closing:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            rows = [self._rows.popleft() for _ in range(len(self._rows))]
            try:
                sink = sink or self._open_sink()
                sink.write(rows)
                if closing:
                    sink.close(self._failed)
            except Exception as error:
                if not warned:
                    logger.warning("%s: tracking failed, training continues: %s", self._name, error)
                closing, warned = closing and warned, True  # the first error is tried again in any case
                self._rows.extendleft(reversed(rows))
                self._wake.set()
                self._closing.wait(RETRY_S)
