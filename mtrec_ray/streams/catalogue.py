"""What each territory is offered in a period."""

# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.schema import offered_in


@dataclass(frozen=True)
class Catalogue:
    """Titles that are offered in each territory and promoted in a period."""

    title_ids: pa.Array
    offer_mask: np.ndarray  # (territories, T) bool
    bounds: tuple[datetime, datetime]  # [start, end) of the period

    @staticmethod
    def of(lake: Lake, start: datetime, end: datetime) -> "Catalogue":
        """The catalogue of [start, end); a title without promotion dates is always promoted."""
        titles = lake.titles
        offered = offered_in(titles, lake.territory_names())
        for column, within, bound in (("promoted_from", pc.less, end), ("promoted_until", pc.greater, start)):
            if column in titles.column_names:
                offered &= pc.fill_null(within(titles[column], pa.scalar(bound)), True).to_numpy()
        return Catalogue(lake.title_ids, offered, (start, end))

    @cached_property
    def offers(self) -> list[np.ndarray]:
        """Ascending int32 title indices of each territory."""
        return [np.flatnonzero(offered).astype(np.int32) for offered in self.offer_mask]
