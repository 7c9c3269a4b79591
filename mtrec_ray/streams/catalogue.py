"""What each territory is offered in a window."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.lake.manifest import Lake


@dataclass(frozen=True)
class Catalogue:
    """Titles offered in each territory and promoted in a window; `offers[t]` are ascending title indices."""

    title_ids: pa.Array
    offers: list[np.ndarray]

    @staticmethod
    def of(lake: Lake, start: datetime, end: datetime) -> "Catalogue":
        """The catalogue of [start, end).

        A title without promotion dates is always promoted, one without territories is offered everywhere.
        """
        titles = lake.titles
        promoted = _promoted(titles, start, end)
        lists = titles["territories"].combine_chunks()
        everywhere = pc.fill_null(pc.list_value_length(lists), 0).to_numpy() == 0
        title = pc.list_parent_indices(lists).to_numpy()
        territory = pc.index_in(pc.list_flatten(lists), value_set=pa.array(lake.territory_names())).to_numpy()
        offers = []
        for index in range(len(lake.manifest.territories)):
            offered = everywhere.copy()
            offered[title[territory == index]] = True
            offers.append(np.flatnonzero(offered & promoted).astype(np.int32))
        return Catalogue(titles["title_id"].combine_chunks(), offers)

    @cached_property
    def offer_mask(self) -> np.ndarray:
        """(territories, T) bool: is the title offered there."""
        mask = np.zeros((len(self.offers), len(self.title_ids)), dtype=bool)
        for territory, offer in enumerate(self.offers):
            mask[territory, offer] = True
        return mask


def _promoted(titles: pa.Table, start: datetime, end: datetime) -> np.ndarray:
    promoted = np.ones(titles.num_rows, dtype=bool)
    if "promoted_from" in titles.column_names:
        promoted &= pc.fill_null(pc.less(titles["promoted_from"], pa.scalar(end)), True).to_numpy()
    if "promoted_until" in titles.column_names:
        promoted &= pc.fill_null(pc.greater(titles["promoted_until"], pa.scalar(start)), True).to_numpy()
    return promoted
