"""The engine in use: of one bundle, or of a pointer, replaced when that moves."""

import asyncio
import logging
from collections.abc import Callable

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.errors import UserError
from mtrec_ray.serving.engine import Engine
from mtrec_ray.serving.pointer import Pointer, is_pointer, read_pointer

logger = logging.getLogger(__name__)


class LiveEngine:
    """`engine` is the newest that could be loaded; a request keeps the engine it started with.

    `uri` names a bundle or a pointer, which is read every `poll_s` seconds. UserError if either is missing or damaged,
    or if the bundle is not the one that was promoted.
    """

    def __init__(self, uri: str, poll_s: float) -> None:
        self.uri, self.poll_s = uri, poll_s
        self.pointer = read_pointer(uri) if is_pointer(uri) else None
        self.engine = _load(self.pointer) if self.pointer else Engine(Bundle.open(uri))

    async def follow(self, on_change: Callable[[str, str | None], None]) -> None:
        """Follow the pointer until cancelled.

        If a bundle cannot be loaded, the engine in use stays. Calls `on_change` with the version in use and the one
        before it, None at first.
        """
        on_change(self.engine.version, None)
        seen = self.pointer
        while self.pointer is not None:
            await asyncio.sleep(self.poll_s)
            try:
                pointer = await asyncio.to_thread(read_pointer, self.uri)
                if pointer == seen:
                    continue
                seen = pointer  # a bundle that cannot be loaded is not tried again until the pointer moves
                if (pointer.bundle, pointer.version) != (self.pointer.bundle, self.pointer.version):
                    before, self.engine = self.engine.version, await asyncio.to_thread(_load, pointer)
                    self.pointer = pointer
                    on_change(self.engine.version, before)
            except Exception as error:
                if isinstance(error, OSError):
                    seen = self.pointer  # tried again: the network may recover
                reason = f"{type(error).__name__}: {error}"
                logger.error("cannot load the pointer's bundle, bundle %s stays: %s", self.engine.version, reason)


def _load(pointer: Pointer) -> Engine:
    bundle = Bundle.open(pointer.bundle)
    if bundle.manifest.version != pointer.version:
        versions = f"is version {bundle.manifest.version}, but {pointer.version} was promoted"
        raise UserError(f"bundle {pointer.bundle!r} {versions}: promote it again")
    return Engine(bundle)
