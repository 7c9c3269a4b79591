"""The pointer: a file, replaced atomically, that names the live bundle."""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, exists, read_json, write_file
from mtrec_ray.serving.engine import Engine

MAX_PREVIOUS = 20


class Pointer(BaseModel):
    """The content of a pointer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str
    """URI of the live bundle."""
    version: str
    moved_at: datetime
    previous: list[str] = []
    """URIs of the bundles that were live before, newest first."""


def is_pointer(uri: str) -> bool:
    path = uri.partition("?")[0] if "://" in uri else uri  # a URI may end in options
    return path.endswith(".json")


def read_pointer(uri: str) -> Pointer:
    """Read a pointer; UserError if it is missing or damaged."""
    try:
        return Pointer.model_validate(read_json(uri))
    except FileNotFoundError as error:
        raise UserError(f"no pointer at {uri!r}: `mtrec promote BUNDLE --pointer {uri}` makes one") from error
    except ValueError as error:
        fix = f"`mtrec promote BUNDLE --pointer {uri} --set gates.against_live=false` overwrites it"
        raise UserError(f"pointer {uri!r} is damaged: {fix}") from error


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
    return _write(uri, bundle, previous)


def move_back(uri: str) -> Pointer:
    """Make the previous bundle live again; UserError if there is none or it cannot be loaded."""
    before = read_pointer(uri)
    if not before.previous:
        raise UserError(
            f"pointer {uri!r}: no bundle was live before {before.version}, so there is nothing to roll back"
        )
    bundle = Bundle.open(before.previous[0])
    Engine(bundle)  # loads and checks every file
    return _write(uri, bundle, before.previous[1:])


def _write(uri: str, bundle: Bundle, previous: list[str]) -> Pointer:
    if not is_pointer(uri):
        raise UserError(f"pointer {uri!r} must end in .json")
    pointer = Pointer(
        bundle=absolute(bundle.uri),
        version=bundle.manifest.version,
        moved_at=datetime.now(UTC),
        previous=previous[:MAX_PREVIOUS],
    )
    write_file(uri, pointer.model_dump_json(indent=1).encode())
    return pointer
