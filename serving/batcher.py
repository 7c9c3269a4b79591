"""Requests that wait at the same moment share one forward.

Torch releases the interpreter's lock in each operation. Where the HTTP server runs in another thread (behind HAProxy),
a forward of 13 rows therefore took 4 ms for 1.4 ms of work, and slowed the server as much. Fewer, larger forwards cost
less of both; tests/benchmarks/RESULTS.md has the figures.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from mtrec_ray.serving.engine import Engine, Query, Ranked

SEVERAL = 4
LINGER_S = 0.004
LATELY_S = 0.1


class Waiting(NamedTuple):
    """A query that waits for its forward."""

    engine: Engine
    query: Query
    answer: "asyncio.Future[Ranked]"
    lone: bool
    """The only query of its call."""


class Batcher:
    """Collects queries while the event loop is busy and answers up to `max_rows` of them at once.

    Under light load a query is answered at once. If a forward of the last `LATELY_S` held `SEVERAL` or more lone
    queries, a lone query waits until as many have come, but at most `LINGER_S`.

    Args:
        max_rows: most users in one forward.
        observe: called with each batch's queries before its forward.
    """

    def __init__(self, max_rows: int, observe: Callable[[list[Query]], None]) -> None:
        self.max_rows, self.observe = max_rows, observe
        self.waiting: deque[Waiting] = deque()
        self.met: deque[tuple[float, int]] = deque(maxlen=8)  # time and number of lone queries of a forward
        self.soon = False
        self.later: asyncio.TimerHandle | None = None

    async def run(self, engine: Engine, queries: list[Query]) -> list[Ranked]:
        """The engine's answers, in order."""
        loop = asyncio.get_running_loop()
        lone, answers = len(queries) == 1, [loop.create_future() for _ in queries]
        self.waiting.extend(Waiting(engine, *one, lone) for one in zip(queries, answers, strict=True))
        if queries:
            self._schedule(loop, linger=lone and self._expects_more(loop.time()))
        return list(await asyncio.gather(*answers))

    def _expects_more(self, now: float) -> bool:
        most = max((count for at, count in self.met if now - at < LATELY_S), default=0)
        return most >= SEVERAL and most > len(self.waiting)

    def _schedule(self, loop: asyncio.AbstractEventLoop, linger: bool) -> None:
        if not linger and not self.soon:
            self.soon = True
            loop.call_soon(self._flush, loop)
        elif linger and self.later is None:
            self.later = loop.call_later(LINGER_S, self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.later is not None:
            self.later.cancel()
        self.soon, self.later = False, None
        batch: list[Waiting] = []
        while (
            self.waiting and len(batch) < self.max_rows and self.waiting[0].engine is (batch or self.waiting)[0].engine
        ):
            batch.append(self.waiting.popleft())  # one engine per forward: a new bundle may have gone live
        if self.waiting:
            self._schedule(loop, linger=False)
        batch = [one for one in batch if not one.answer.cancelled()]
        if not batch:
            return
        self.met.append((loop.time(), sum(one.lone for one in batch)))
        queries = [one.query for one in batch]
        self.observe(queries)
        try:
            answers = batch[0].engine.recommend(queries)
        except Exception as error:
            for one in batch:
                one.answer.set_exception(error)
            return
        for one, answer in zip(batch, answers, strict=True):
            one.answer.set_result(answer)
