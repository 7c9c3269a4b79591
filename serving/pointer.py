"""Which bundle is live: a small file, replaced atomically, that also lists the bundles that were live before."""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

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
    """URIs of bundles that were live before, newest first."""


def is_pointer(uri: str) -> bool:
    place = uri.partition("?")[0] if "://" in uri else uri  # options of a URI come after its name
    return place.endswith(".json")


def read_pointer(uri: str) -> Pointer:
    """Raises UserError if there is none or it is damaged."""
    try:
        return Pointer.model_validate(read_json(uri))
    except FileNotFoundError as error:
        raise UserError(f"no pointer at {uri!r}: `mtrec promote BUNDLE --pointer {uri}` makes one") from error
    except (ValidationError, ValueError) as error:
        fix = f"`mtrec promote BUNDLE --pointer {uri} --set gates.against_live=false` writes it anew"
        raise UserError(f"pointer {uri!r} is damaged: {fix}") from error


def move_pointer(uri: str, bundle: Bundle, anew: bool = False) -> Pointer:
    """Make a bundle the live one; a damaged pointer is overwritten if `anew`, else it raises UserError."""
    previous: list[str] = []
    try:
        before = read_pointer(uri)
        same = before.bundle == bundle.uri  # then nothing to go back to is added, even if it was made again
        previous = before.previous if same else [before.bundle, *before.previous]
    except UserError:
        if exists(uri) and not anew:
            raise
    return _write(uri, bundle, previous)


def move_back(uri: str) -> Pointer:
    """Make the previous bundle live again; UserError if there is none or it cannot be loaded."""
    before = read_pointer(uri)
    if not before.previous:
        raise UserError(f"pointer {uri!r}: no bundle was live before {before.version}: nothing to go back to")
    bundle = Bundle.open(before.previous[0])
    Engine(bundle)  # checks that every file is there, whole, and fits the others
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
