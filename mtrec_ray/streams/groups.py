"""Territory groups: which territories share a group block."""

import os

from pydantic import BaseModel

from mtrec_ray.errors import UserError
from mtrec_ray.files import read_file
from mtrec_ray.lake.manifest import Manifest
from mtrec_ray.yaml12 import parse_yaml


class Groups(BaseModel, frozen=True, extra="forbid"):
    """A partition of the lake's territories."""

    names: list[str]
    of_territory: list[int]  # index into `names` of each territory, in the lake's order


def make_groups(spec: str, manifest: Manifest) -> Groups:
    """`one`, `each`, `regions`, or a YAML file or URI `group name: [territory, ...]`.

    UserError for an unreadable file, or a territory that is unknown, missing or in two groups.
    """
    territories = [t.name for t in manifest.territories]
    if spec == "one":
        return Groups(names=["all"], of_territory=[0] * len(territories))
    if spec == "each":
        return Groups(names=territories, of_territory=list(range(len(territories))))
    if spec == "regions":
        names = sorted({t.region for t in manifest.territories})
        return Groups(names=names, of_territory=[names.index(t.region) for t in manifest.territories])
    return _from_file(spec, territories)


def _from_file(uri: str, territories: list[str]) -> Groups:
    try:
        document = parse_yaml(read_file(uri), f"groups file {uri}")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        found = f"model.groups = {uri!r} is neither one, each, regions nor a readable file"
        raise UserError(f"{found}: {reason}") from error
    if not isinstance(document, dict) or not all(isinstance(members, list) for members in document.values()):
        raise UserError(f"groups file {uri} must hold lines `group name: [territory, ...]`")
    group_of: dict[str, int] = {}
    for index, members in enumerate(document.values()):
        for territory in map(str, members):
            if territory not in territories:
                known = ", ".join(territories[:12])
                raise UserError(f"groups file {uri}: unknown territory {territory!r}; the lake has {known}")
            if territory in group_of:
                raise UserError(f"groups file {uri}: territory {territory!r} is in two groups; keep it in one")
            group_of[territory] = index
    missing = [t for t in territories if t not in group_of]
    if missing:
        found = f"groups file {uri} leaves out {len(missing)} territories, first {missing[0]!r}"
        raise UserError(f"{found}: give each a group")
    return Groups(names=[str(name) for name in document], of_territory=[group_of[t] for t in territories])
