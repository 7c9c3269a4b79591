"""Requests that wait at the same moment share one forward.

Torch gives the interpreter's lock away with each operation, so where the server of HTTP runs in a thread beside, a
forward of 13 rows took 4 ms for 1.4 ms of work, and the server's own work as much longer. Fewer and larger forwards
take less of both: behind HAProxy, 32 callers were answered 2,100 instead of 1,650 times a second.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from serving.engine import Engine, Query, Ranked

SEVERAL, LINGER_S = 4, 0.004
Waiting = tuple[Engine, Query, "asyncio.Future[Ranked]", bool]
"""The last: it came alone, as others may."""


class Batcher:
    """Collects queries while the event loop is busy and answers up to `max_rows` of them at once.

    Under light load nothing is waited for. Where several that came alone met in a batch lately, as many are waited for,
    for `LINGER_S` at most.

    Args:
        max_rows: users of one forward.
        observe: called with each batch's queries before its forward.
    """

    def __init__(self, max_rows: int, observe: Callable[[list[Query]], None]) -> None:
        self.max_rows, self.observe = max_rows, observe
        self.waiting: deque[Waiting] = deque()
        self.sizes: deque[int] = deque([0], maxlen=8)  # of the last batches, by those that came alone
        self.soon = False
        self.later: asyncio.TimerHandle | None = None

    async def run(self, engine: Engine, queries: list[Query]) -> list[Ranked]:
        """The engine's answers, in order."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in queries]
        alone = len(queries) == 1
        self.waiting.extend((engine, query, future, alone) for query, future in zip(queries, futures, strict=True))
        if queries:
            self._schedule(loop, others=alone and SEVERAL <= max(self.sizes) > len(self.waiting))
        return list(await asyncio.gather(*futures))

    def _schedule(self, loop: asyncio.AbstractEventLoop, others: bool) -> None:
        if others and self.later is None:
            self.later = loop.call_later(LINGER_S, self._flush, loop)
        elif not others and not self.soon:
            self.soon = True
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.later is not None:
            self.later.cancel()
        self.soon, self.later = False, None
        batch: list[Waiting] = []
        while self.waiting and len(batch) < self.max_rows and self.waiting[0][0] is (batch or self.waiting)[0][0]:
            batch.append(self.waiting.popleft())  # one engine: a new bundle may have come in between
        if self.waiting:
            self._schedule(loop, others=False)
        batch = [one for one in batch if not one[2].cancelled()]
        self.sizes.append(sum(alone for *_, alone in batch))
        if not batch:
            return
        queries = [query for _, query, _, _ in batch]
        self.observe(queries)
        try:
            answers = batch[0][0].recommend(queries)
        except Exception as error:
            for _, _, future, _ in batch:
                future.set_exception(error)
            return
        for (_, _, future, _), answer in zip(batch, answers, strict=True):
            future.set_result(answer)
