"""Names of the group blocks, which settings list without loading torch."""

from typing import Literal

GroupBlockName = Literal["dense", "shift", "film", "low_rank"]
