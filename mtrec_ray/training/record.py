"""Reading `run.json` of any kind of run."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, join, parent, read_json

Record = TypeVar("Record", bound=BaseModel)


def load_record(uri: str, kind: str, model: type[Record]) -> Record:
    """What the folder or URI `uri` says of its run, with the place and name that it has now: runs may be moved.

    Args:
        kind: propensity, backbone or eliminators.

    Raises:
        UserError: there is no run, one of another kind, or one of another version.
    """
    try:
        document = read_json(join(uri, "run.json"))
    except FileNotFoundError as error:
        mend = f"`mtrec train {kind}` makes one"
        raise UserError(f"no run at {uri!r}: run.json is missing; {mend}") from error
    found = document.get("kind", "propensity") if isinstance(document, dict) else "nothing known"
    if found != kind:
        raise UserError(f"run {uri!r} is one of {found}, not of {kind}: choose another run, or another name")
    try:
        record = model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"run {uri!r} was written by another version ({where}: {first['msg']}): train again") from error
    config: Any = vars(record)["config"]
    runs, name = parent(absolute(uri))
    return record.model_copy(update={"config": config.model_copy(update={"runs": runs, "name": name})})
