"""The engine in use: of a fixed bundle, or of the one a pointer names, replaced without a gap when that moves."""

import asyncio
import logging
from collections.abc import Callable

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.errors import UserError
from mtrec_ray.serving.engine import Engine
from mtrec_ray.serving.pointer import Pointer, is_pointer, read_pointer

logger = logging.getLogger(__name__)


class LiveEngine:
    """`engine` is the newest that could be loaded; a request keeps the one it began with.

    Args:
        uri: a bundle, or a pointer (ends in .json).
        poll_s: seconds between two looks at the pointer.

    Raises:
        UserError: no such bundle or pointer, a damaged one, or a bundle that is not the one that was promoted.
    """

    def __init__(self, uri: str, poll_s: float) -> None:
        self.uri, self.poll_s = uri, poll_s
        self.pointer = read_pointer(uri) if is_pointer(uri) else None
        self.engine = _load(self.pointer) if self.pointer else Engine(Bundle.open(uri))

    async def follow(self, tell: Callable[[str, str | None], None]) -> None:
        """Follow the pointer until cancelled; where a bundle cannot be loaded, the one in use stays.

        Args:
            tell: called with the version in use and the one before it, None at first.
        """
        tell(self.engine.version, None)
        seen = self.pointer
        while self.pointer is not None:
            await asyncio.sleep(self.poll_s)
            try:
                found = await asyncio.to_thread(read_pointer, self.uri)
                if found == seen:
                    continue
                seen = found  # a bundle that cannot be loaded is not tried again until the pointer moves
                if (found.bundle, found.version) != (self.pointer.bundle, self.pointer.version):
                    before = self.engine.version
                    self.engine = await asyncio.to_thread(_load, found)
                    self.pointer = found
                    tell(self.engine.version, before)
                    logger.info("now serving bundle %s", self.engine.version)
            except Exception as error:
                if isinstance(error, OSError):
                    seen = self.pointer  # tried again: the network may come back
                what = f"{type(error).__name__}: {error}"
                logger.error("the pointer's bundle cannot be loaded, bundle %s stays: %s", self.engine.version, what)


def _load(pointer: Pointer) -> Engine:
    bundle = Bundle.open(pointer.bundle)
    if bundle.manifest.version != pointer.version:
        raise UserError(
            f"bundle {pointer.bundle!r} is version {bundle.manifest.version}, but {pointer.version} was promoted: "
            "promote it again"
        )
    return Engine(bundle)
