"""The pointer, a file that names the live bundle, and the engine that follows it."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists, read_json, write_file
from mtrec_ray.serving.engine import Engine

logger = logging.getLogger(__name__)

POLL_S = 2.0  # seconds between two reads of a followed pointer


class Pointer(BaseModel):
    """The content of a pointer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str  # URI of the live bundle
    version: str
    moved_at: datetime
    previous: list[str] = []  # URIs of the bundles that were live before, newest first


def is_pointer(uri: str) -> bool:
    path = uri.partition("?")[0] if "://" in uri else uri  # a URI may end in options
    return path.endswith(".json")


def read_pointer(uri: str) -> Pointer:
    """The content of a pointer; UserError if it is missing or damaged."""
    try:
        return Pointer.model_validate(read_json(uri))
    except FileNotFoundError as error:
        raise UserError(f"no pointer at {uri!r}: `mtrec promote BUNDLE --pointer {uri}` makes one") from error
    except ValueError as error:
        fix = f"`mtrec promote BUNDLE --pointer {uri} --set gates.against_live=false` overwrites it"
        raise UserError(f"pointer {uri!r} is damaged: {fix}") from error


def live_bundle(pointer: Pointer) -> Bundle:
    """The bundle of a pointer; UserError if it was rebuilt after its promotion."""
    bundle = Bundle.open(pointer.bundle)
    if bundle.manifest.version != pointer.version:
        versions = f"was rebuilt: it is version {bundle.manifest.version}, but {pointer.version} was promoted"
        raise UserError(f"bundle {pointer.bundle!r} {versions}: promote it again")
    return bundle


def move_pointer(uri: str, bundle: Bundle, overwrite_damaged: bool = False) -> Pointer:
    """Make `bundle` the live one; UserError for a damaged pointer, unless overwritten."""
    previous: list[str] = []
    try:
        before = read_pointer(uri)
        same = before.bundle == bundle.uri  # a rebuilt bundle must not be its own predecessor
        previous = before.previous if same else [before.bundle, *before.previous]
    except UserError:
        if exists(uri) and not overwrite_damaged:
            raise
    return write_pointer(uri, bundle, previous)


def write_pointer(uri: str, bundle: Bundle, previous: list[str]) -> Pointer:
    if not is_pointer(uri):
        raise UserError(f"pointer {uri!r} must end in .json")
    version, now = bundle.manifest.version, datetime.now(UTC)
    pointer = Pointer(bundle=bundle.uri, version=version, moved_at=now, previous=previous)
    write_file(uri, pointer.model_dump_json(indent=1).encode())
    return pointer


class LiveEngine:
    """`engine` is the newest that could be loaded from `uri`, a bundle or a pointer.

    A request keeps the engine it started with. UserError if the first cannot be loaded.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.pointer = read_pointer(uri) if is_pointer(uri) else None
        self.engine = Engine(live_bundle(self.pointer) if self.pointer else Bundle.open(uri))

    async def follow(self, on_change: Callable[[str, str | None], None]) -> None:
        """Follow the pointer until cancelled; an engine stays if the next cannot be loaded.

        Calls `on_change` with the version in use and the one before it, None at first.
        """
        on_change(self.engine.version, None)
        seen = self.pointer
        while self.pointer is not None:
            await asyncio.sleep(POLL_S)
            try:
                pointer = await asyncio.to_thread(read_pointer, self.uri)
                if pointer == seen:
                    continue
                seen = pointer  # a bundle that cannot be loaded is not tried again until the pointer moves
                if (pointer.bundle, pointer.version) != (self.pointer.bundle, self.pointer.version):
                    bundle = await asyncio.to_thread(live_bundle, pointer)
                    before, self.engine = self.engine.version, await asyncio.to_thread(Engine, bundle)
                    self.pointer = pointer
                    on_change(self.engine.version, before)
            except Exception as error:
                if isinstance(error, OSError):
                    seen = self.pointer  # tried again: the network may recover
                reason = f"{type(error).__name__}: {error}"
                logger.error("cannot load the pointer's bundle, bundle %s stays: %s", self.engine.version, reason)
