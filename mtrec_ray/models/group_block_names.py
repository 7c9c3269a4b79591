"""The names of `group_blocks.GROUP_BLOCKS`, so that settings can list them without loading torch."""

from typing import Literal

GroupBlockName = Literal["dense", "shift", "film", "low_rank"]
