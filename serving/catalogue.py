"""The catalogue of a bundle: which row of the tensors a title is, and where it is offered."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mtrec_ray.bundle.manifest import Bundle


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
        """A title without territories is offered everywhere."""
        ids = titles["title_id"].to_pylist()
        territories = bundle.manifest.territories
        lists = titles["territories"].combine_chunks()
        nowhere_named = pc.fill_null(pc.list_value_length(lists), 0).to_numpy() == 0
        offered = np.repeat(nowhere_named[None], len(territories), axis=0)  # (T, N)
        title = pc.list_parent_indices(lists).to_numpy()
        territory = pc.index_in(pc.list_flatten(lists), value_set=pa.array(territories)).fill_null(-1).to_numpy()
        offered[territory[territory >= 0], title[territory >= 0]] = True
        return ServedCatalogue(
            ids=ids,
            names=[name or title_id for name, title_id in zip(titles["name"].to_pylist(), ids, strict=True)],
            row_of={title_id: row for row, title_id in enumerate(ids)},
            territory_of={name: row for row, name in enumerate(territories)},
            elsewhere=torch.from_numpy(~offered),
            everywhere=bool(offered.all()),
        )
