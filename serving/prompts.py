"""What prompts give the attention, kept for each combination and set of values: no history has a part in it.

Legend: `B` rows, `m` attributes, `H` heads, `P` prompt rows, `d` width.
"""

import torch
from torch import Tensor

from mtrec_ray.models.eliminators import EliminatorPack
from mtrec_ray.models.sequential import SequentialBackbone

Key = tuple[int, ...]


class PromptCache:
    """Keys and values of the prompts of every (combination, values) asked for, in one bank a layer.

    Args:
        capacity: entries; one more and the cache starts anew. 4,096 of 13 prompts and 64 wide take 27 MB a layer.
    """

    def __init__(self, backbone: SequentialBackbone, pack: EliminatorPack, capacity: int = 4096) -> None:
        self.backbone, self.pack, self.capacity = backbone, pack, capacity
        self.place: dict[Key, int] = {}
        self.banks: list[Tensor] = []  # a layer: (entries, 1, H, P, 2 d / H)

    def gather(self, keys: list[Key]) -> tuple[Tensor, ...]:
        """(combination, *values) of each of B rows -> a layer each: (B, 1, H, P, 2 d / H)."""
        missing = list(dict.fromkeys(key for key in keys if key not in self.place))
        if missing and len(self.place) + len(missing) > self.capacity:
            self.place, self.banks, missing = {}, [], list(dict.fromkeys(keys))
        if missing:
            self._add(missing)
        index = torch.tensor([self.place[key] for key in keys])
        return tuple(bank.index_select(0, index) for bank in self.banks)

    @torch.inference_mode()
    def _add(self, missing: list[Key]) -> None:
        wanted = torch.tensor(missing)  # (B, 1 + m)
        found = list(self.backbone.prompt_layers(self.pack.for_rows(wanted[:, 0], wanted[:, 1:])))
        self.banks = [torch.cat(pair) for pair in zip(self.banks, found, strict=True)] if self.banks else found
        for key in missing:
            self.place[key] = len(self.place)
