"""Where titles are offered."""

# pyright: reportAttributeAccessIssue=false

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def offered_in(titles: pa.Table, territories: list[str]) -> np.ndarray:
    """(territories, titles) bool; a title without territories is offered everywhere."""
    lists = titles["territories"].combine_chunks()
    everywhere = pc.fill_null(pc.list_value_length(lists), 0).to_numpy() == 0
    offered = np.repeat(everywhere[None], len(territories), axis=0)
    title = pc.list_parent_indices(lists).to_numpy()
    territory = pc.index_in(pc.list_flatten(lists), value_set=pa.array(territories)).fill_null(-1).to_numpy()
    offered[territory[territory >= 0], title[territory >= 0]] = True
    return offered
