"""The online store in Redis: shared by all machines.

| key | value |
|---|---|
| `mtrec:history:<user id>` | list of title ids, oldest first |
| `mtrec:profile:<user id>` | msgpack of (attributes, territory, embedding); none if a user was only appended to |
| `mtrec:appends:<user id>` | list of the idempotency keys of the last appends |

The three expire together. Redis 6.0.6 or newer; an `allkeys-...` eviction policy could drop one of the three alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import msgpack
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from mtrec_ray.errors import UserError
from mtrec_ray.serving.store import MAX_APPEND_KEYS, MAX_STORED_EVENTS, StoreUnavailable, UserState, without_password

HISTORY, PROFILE, APPENDS = "mtrec:history:", "mtrec:profile:", "mtrec:appends:"
APPEND = f"""
local key, expire_ms = ARGV[1], tonumber(ARGV[2])
if #ARGV > 2 and not (key ~= '' and redis.call('LPOS', KEYS[3], key)) then
    redis.call('RPUSH', KEYS[1], unpack(ARGV, 3))
    redis.call('LTRIM', KEYS[1], -{MAX_STORED_EVENTS}, -1)
    if key ~= '' then
        redis.call('RPUSH', KEYS[3], key)
        redis.call('LTRIM', KEYS[3], -{MAX_APPEND_KEYS}, -1)
    end
    for i = 1, expire_ms > 0 and 3 or 0 do
        redis.call('PEXPIRE', KEYS[i], expire_ms)
    end
end
return redis.call('LLEN', KEYS[1])
"""
"""KEYS: history, profile, appends; ARGV: idempotency key or "", milliseconds to live or 0, titles."""
MAX_CONNECTIONS = 64  # further calls wait for a free one, at most the timeout
LOAD_TIMEOUT_S, LOAD_RETRIES = 10.0, 3  # of `put_many`, which may repeat a batch: storing it twice changes nothing
MAX_SCANS = 100  # of a sample, each of about 1,000 keys
BATCH_ITEMS = 20_000  # users and titles per transaction of `put_many`, which blocks Redis for about 10 ms


class RedisStore:
    """See `serving.store.Store`; connections stay in the event loop of the first call."""

    def __init__(self, url: str, *, expire_s: float | None, timeout_s: float) -> None:
        self._url, self._shown_url = url, without_password(url)
        self._expire_ms = None if expire_s is None else max(1, round(1000 * expire_s))
        try:
            database = urlsplit(self._shown_url).path.strip("/")
            if database and not database.isdigit():
                raise ValueError(f"{database!r} is no database number")
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=MAX_CONNECTIONS,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=AsyncRetry(NoBackoff(), 0),  # the endpoint degrades at once, and no append is stored twice
                maint_notifications_config=MaintNotificationsConfig(enabled=False),  # they hide dead connections
            )
            redis.ConnectionPool.from_url(url).make_connection()  # checks the URL's options without connecting
        except (ValueError, TypeError) as error:
            raise UserError(f"store {self._shown_url!r}: {error}") from error
        self._client = redis.asyncio.Redis.from_pool(pool)

    async def get(self, user_ids: Sequence[str]) -> list[UserState | None]:
        with self._unavailable():
            async with self._client.pipeline(transaction=False) as pipeline:
                for user_id in user_ids:
                    pipeline.get(PROFILE + user_id)
                    pipeline.lrange(HISTORY + user_id, -MAX_STORED_EVENTS, -1)
                replies = await pipeline.execute()
        return [_state(profile, titles) for profile, titles in zip(replies[::2], replies[1::2], strict=True)]

    async def append(self, user_id: str, title_ids: Sequence[str], key: str | None = None) -> int:
        keys = [prefix + user_id for prefix in (HISTORY, PROFILE, APPENDS)]
        with self._unavailable():
            return await self._client.eval(APPEND, 3, *keys, key or "", self._expire_ms or 0, *title_ids)

    def put_many(self, states: Iterable[tuple[str, UserState]]) -> int:
        stored = pending = 0
        options: Any = {"socket_timeout": LOAD_TIMEOUT_S, "socket_connect_timeout": LOAD_TIMEOUT_S}
        options["retry"] = Retry(ExponentialBackoff(cap=1.0, base=0.05), LOAD_RETRIES)
        with self._unavailable(), redis.Redis.from_url(self._url, **options) as client, client.pipeline() as pipeline:
            for user_id, state in states:
                history, titles = HISTORY + user_id, state.history[-MAX_STORED_EVENTS:]
                profile: Any = msgpack.packb((state.attributes, state.territory, state.embedding))
                pipeline.set(PROFILE + user_id, profile, px=self._expire_ms)
                pipeline.delete(history, APPENDS + user_id)
                if titles:
                    pipeline.rpush(history, *titles)
                    if self._expire_ms:
                        pipeline.pexpire(history, self._expire_ms)
                stored, pending = stored + 1, pending + 1 + len(state.history)
                if pending >= BATCH_ITEMS:
                    pipeline.execute()
                    pending = 0
            pipeline.execute()
        return stored

    async def ping(self) -> None:
        with self._unavailable():
            await self._client.execute_command("PING")

    async def sample(self, count: int) -> list[str]:
        cursor, users = 0, dict[str, None]()  # a scan may return a key twice
        with self._unavailable():
            for _ in range(MAX_SCANS):
                reply: Any = await self._client.scan(cursor, match=HISTORY + "*", count=1000)
                cursor, keys = reply
                users |= dict.fromkeys(key.decode().removeprefix(HISTORY) for key in keys)
                if cursor == 0 or len(users) >= count:
                    break
        return list(users)[:count]

    async def close(self) -> None:
        await self._client.aclose()

    @contextmanager
    def _unavailable(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:  # away, starting, full, failing over, or a denied command
            text = str(error).rpartition(" of pipeline caused error: ")[2]  # the part before may contain a history
            raise StoreUnavailable(f"Redis at {self._shown_url}: {text}") from error


def _state(profile: bytes | None, titles: list[bytes]) -> UserState | None:
    history = tuple(title.decode() for title in titles)
    if profile is None:
        return UserState(history) if history else None
    return UserState(history, *msgpack.unpackb(profile))
