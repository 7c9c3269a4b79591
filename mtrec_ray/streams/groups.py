"""Territory groups: which territories share a group block."""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Manifest


class Groups(BaseModel):
    """A partition of the lake's territories."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: list[str]
    """Group names; a group's index is its place here."""
    of_territory: list[int]
    """Group index of each territory, in the lake's order."""


def make_groups(spec: str, manifest: Manifest) -> Groups:
    """`one`, `each`, `regions`, or the path of a YAML file `group name: [territory, ...]`.

    Raises:
        UserError: no such file, or a territory that is unknown, missing or in two groups.
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


def _from_file(path: str, territories: list[str]) -> Groups:
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"model.groups = {path!r} is neither one, each, regions nor a readable file: {error.strerror}"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"groups file {path} is not YAML: {error}") from error
    if not isinstance(document, dict) or not all(isinstance(members, list) for members in document.values()):
        raise UserError(f"groups file {path} must hold lines `group name: [territory, ...]`")
    group_of: dict[str, int] = {}
    for index, members in enumerate(document.values()):
        for territory in map(str, members):
            if territory not in territories:
                raise UserError(
                    f"groups file {path}: unknown territory {territory!r}; the lake has {', '.join(territories[:12])}"
                )
            if territory in group_of:
                raise UserError(f"groups file {path}: territory {territory!r} is in two groups; keep it in one")
            group_of[territory] = index
    missing = [t for t in territories if t not in group_of]
    if missing:
        raise UserError(
            f"groups file {path} leaves out {len(missing)} territories, first {missing[0]!r}: give each a group"
        )
    return Groups(names=[str(name) for name in document], of_territory=[group_of[t] for t in territories])
