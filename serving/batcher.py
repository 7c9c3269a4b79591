"""Requests that wait at the same moment share one forward."""

import asyncio
from collections import deque
from collections.abc import Callable

from serving.engine import Engine, Query, Ranked

Waiting = tuple[Engine, Query, "asyncio.Future[Ranked]"]


class Batcher:
    """Collects queries while the event loop is busy and answers up to `max_rows` of them at once.

    Nothing is waited for: under light load a batch is one query, under heavy load what arrived during the last forward.

    Args:
        max_rows: users of one forward.
        observe: called with each batch's queries before its forward.
    """

    def __init__(self, max_rows: int, observe: Callable[[list[Query]], None]) -> None:
        self.max_rows, self.observe = max_rows, observe
        self.waiting: deque[Waiting] = deque()
        self.scheduled = False

    async def run(self, engine: Engine, queries: list[Query]) -> list[Ranked]:
        """The engine's answers, in order."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in queries]
        self.waiting.extend((engine, query, future) for query, future in zip(queries, futures, strict=True))
        self._schedule(loop)
        return list(await asyncio.gather(*futures))

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.waiting and not self.scheduled:
            self.scheduled = True
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self.scheduled = False
        batch: list[Waiting] = []
        while self.waiting and len(batch) < self.max_rows and self.waiting[0][0] is (batch or self.waiting)[0][0]:
            batch.append(self.waiting.popleft())  # one engine: a new bundle may have come in between
        batch = [one for one in batch if not one[2].cancelled()]
        self._schedule(loop)
        if not batch:
            return
        queries = [query for _, query, _ in batch]
        self.observe(queries)
        try:
            answers = batch[0][0].recommend(queries)
        except Exception as error:
            for _, _, future in batch:
                future.set_exception(error)
            return
        for (_, _, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)
