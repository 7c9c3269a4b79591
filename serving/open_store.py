"""The online store at a URL, in a folder of one machine (LMDB) or in Redis.

| url | store |
|---|---|
| `redis://[user:password@]host[:port][/db]`, `rediss://...` (TLS) | `serving.redis_store` |
| a local path | `serving.lmdb_store`, shared by all processes of the machine |
"""

from mtrec_ray.errors import UserError
from mtrec_ray.serving.store import TIMEOUT_S, Store, is_folder, without_password


def open_store(url: str, *, expire_s: float | None = None, timeout_s: float = TIMEOUT_S) -> Store:
    """The store at `url`, see above. Redis is not contacted before the first call; a missing folder is created.

    Args:
        expire_s: seconds after the last `put_many` or `append` until a user is forgotten; None = never.
        timeout_s: for Redis; see TIMEOUT_S.

    Raises:
        UserError: a URL that is neither, or a folder that cannot be opened.
    """
    if is_folder(url):
        from mtrec_ray.serving.lmdb_store import LmdbStore

        return LmdbStore(url, expire_s=expire_s)
    if url.split("://")[0] in ("redis", "rediss"):
        from mtrec_ray.serving.redis_store import RedisStore

        return RedisStore(url, expire_s=expire_s, timeout_s=timeout_s)
    raise UserError(f"store {without_password(url)!r}: give redis://host:port/db, rediss://... or a local folder")
