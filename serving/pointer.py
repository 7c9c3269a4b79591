"""Which bundle is live: a small file, exchanged atomically, with the bundles that were live before."""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, exists, read_json, write_file

MAX_PREVIOUS = 20


class Pointer(BaseModel):
    """The content of a pointer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str
    """URI of the live bundle."""
    version: str
    moved_at: datetime
    previous: list[str] = []
    """URIs of bundles that were live before, newest first."""


def is_pointer(uri: str) -> bool:
    return uri.endswith(".json")


def read_pointer(uri: str) -> Pointer:
    """Raises UserError where there is none, or a damaged one."""
    try:
        return Pointer.model_validate(read_json(uri))
    except FileNotFoundError as error:
        raise UserError(f"no pointer at {uri!r}: `mtrec promote BUNDLE --pointer {uri}` makes one") from error
    except (ValidationError, ValueError) as error:
        raise UserError(f"pointer {uri!r} is damaged: promote a bundle to write it anew") from error


def move_pointer(uri: str, bundle: Bundle) -> Pointer:
    """Make a bundle the live one."""
    previous: list[str] = []
    if exists(uri):
        before = read_pointer(uri)
        previous = [before.bundle, *before.previous]
    return _write(uri, bundle, previous)


def move_back(uri: str) -> Pointer:
    """Make the bundle live that was so before; UserError where there is none."""
    before = read_pointer(uri)
    if not before.previous:
        raise UserError(f"pointer {uri!r}: no bundle was live before {before.version}: nothing to go back to")
    return _write(uri, Bundle.open(before.previous[0]), before.previous[1:])


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
