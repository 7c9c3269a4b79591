"""The catalogue of a bundle: each title's row in the tensors, and where it is offered."""

from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.lake.offers import offered_in


@dataclass(frozen=True)
class ServedCatalogue:
    """N titles and T territories."""

    ids: list[str]
    names: list[str]
    row_of: dict[str, int]
    territory_of: dict[str, int]
    elsewhere: Tensor
    """(T, N) bool: not offered in the territory."""
    everywhere: bool
    """All titles are offered in all territories."""

    @staticmethod
    def of(bundle: Bundle, titles: pa.Table) -> "ServedCatalogue":
        """The catalogue of a bundle with these titles."""
        ids = titles["title_id"].to_pylist()
        territories = bundle.manifest.territories
        offered = offered_in(titles, territories)  # (T, N)
        return ServedCatalogue(
            ids=ids,
            names=[name or title_id for name, title_id in zip(titles["name"].to_pylist(), ids, strict=True)],
            row_of={title_id: row for row, title_id in enumerate(ids)},
            territory_of={name: row for row, name in enumerate(territories)},
            elsewhere=torch.from_numpy(~offered),
            everywhere=bool(offered.all()),
        )
