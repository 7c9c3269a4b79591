"""The names of the group blocks, apart from their classes so that settings can list them without loading torch."""

from typing import Literal

GroupBlockName = Literal["dense", "shift", "film", "low_rank"]
"""In the order of the classes in `group_blocks.GROUP_BLOCKS`."""
