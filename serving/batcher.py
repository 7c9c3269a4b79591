"""Requests that wait at the same time share one forward.

Waiting for a crowd gave 2,160 instead of 1,720 requests/s behind HAProxy, where the HTTP server's thread slows torch.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from mtrec_ray.serving.engine import Engine, Query, Ranked

MAX_ROWS = 64  # maximum queries of a forward
CROWD, MAX_WAIT_S, RECENT_S = 4, 0.004, 0.1


class Waiting(NamedTuple):
    """A query that waits for its forward; `single`: the only query of its call."""

    engine: Engine
    query: Query
    answer: "asyncio.Future[Ranked]"
    single: bool


class Batcher:
    """Answers queries that arrive while the event loop is busy in one forward.

    Under light load a query is answered at once. If a forward of the last `RECENT_S` had `CROWD` or more single
    queries, a single query waits for as many, but at most `MAX_WAIT_S`. Calls `observe` with every forward's queries.
    """

    def __init__(self, observe: Callable[[list[Query]], None]) -> None:
        self.observe = observe
        self.waiting: deque[Waiting] = deque()
        self.recent: deque[tuple[float, int]] = deque(maxlen=8)  # time and single queries of a forward
        self.scheduled = False
        self.timer: asyncio.TimerHandle | None = None

    async def recommend(self, engine: Engine, queries: list[Query]) -> list[Ranked]:
        """The engine's answers, in order."""
        loop = asyncio.get_running_loop()
        single, answers = len(queries) == 1, [loop.create_future() for _ in queries]
        self.waiting.extend(Waiting(engine, *one, single) for one in zip(queries, answers, strict=True))
        if queries:
            self._schedule(loop, wait=single and self._expects_more(loop.time()))
        return list(await asyncio.gather(*answers))

    def _expects_more(self, now: float) -> bool:
        most = max((count for at, count in self.recent if now - at < RECENT_S), default=0)
        return most >= CROWD and most > len(self.waiting)

    def _schedule(self, loop: asyncio.AbstractEventLoop, wait: bool) -> None:
        if not wait and not self.scheduled:
            self.scheduled = True
            loop.call_soon(self._flush, loop)
        elif wait and self.timer is None:
            self.timer = loop.call_later(MAX_WAIT_S, self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.scheduled, self.timer = False, None
        batch: list[Waiting] = []
        while self.waiting and len(batch) < MAX_ROWS and self.waiting[0].engine is (batch or self.waiting)[0].engine:
            batch.append(self.waiting.popleft())  # of one engine: a new bundle may have gone live
        if self.waiting:
            self._schedule(loop, wait=False)
        batch = [one for one in batch if not one.answer.cancelled()]
        if not batch:
            return
        self.recent.append((loop.time(), sum(one.single for one in batch)))
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
