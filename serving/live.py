"""The engine in use: of a fixed bundle, or of the one a pointer names, exchanged without a gap when it moves."""

import asyncio
import logging
from collections.abc import Callable

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.errors import UserError
from serving.engine import Engine
from serving.pointer import is_pointer, read_pointer

logger = logging.getLogger(__name__)


class LiveEngine:
    """`engine` is the newest that could be loaded; a request keeps the one it began with.

    Args:
        uri: a bundle, or a pointer (ends in .json).
        poll_s: seconds between two looks at the pointer.

    Raises:
        UserError: no such bundle or pointer, or a damaged one.
    """

    def __init__(self, uri: str, poll_s: float) -> None:
        self.uri, self.poll_s = uri, poll_s
        self.bundle_uri = self._wanted()
        self.engine = Engine(Bundle.open(self.bundle_uri))

    async def follow(self, tell: Callable[[str, str | None], None]) -> None:
        """Look at the pointer until cancelled; a bundle that cannot be loaded leaves the one in use.

        Args:
            tell: called with the version in use and the one before it, None at first.
        """
        tell(self.engine.version, None)
        while is_pointer(self.uri):
            await asyncio.sleep(self.poll_s)
            try:
                wanted = await asyncio.to_thread(self._wanted)
                if wanted != self.bundle_uri:
                    before = self.engine.version
                    self.engine = await asyncio.to_thread(lambda: Engine(Bundle.open(wanted)))  # noqa: B023
                    self.bundle_uri = wanted
                    tell(self.engine.version, before)
                    logger.info("now serving bundle %s", self.engine.version)
            except (UserError, OSError) as error:
                logger.error("the pointer's bundle cannot be loaded, bundle %s stays: %s", self.engine.version, error)

    def _wanted(self) -> str:
        return read_pointer(self.uri).bundle if is_pointer(self.uri) else self.uri
