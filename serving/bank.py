"""Eliminators for rows that each have their own: two tables, and one row to fetch from each.

Legend: `B` rows, `m` attributes.

What depends on the combination alone stands in one table from the start. What depends on the user's values too, the
transport's gains and the prompts' keys and values in each layer, is kept for each (combination, values) that was asked
for: no history has a part in it.
"""

import torch
from torch import Tensor

from mtrec_ray.models.eliminators import EliminatorPack, PackRows
from mtrec_ray.models.sequential import SequentialBackbone

Key = tuple[int, ...]
"""(combination, *values), an unknown value -1."""


class EliminatorBank:
    """Gathers the eliminators of a batch.

    Args:
        capacity: keys that are kept; one more and the table starts anew. 4,096 of 13 prompts and 64 wide take 27 MB a
            layer.
    """

    def __init__(self, backbone: SequentialBackbone, pack: EliminatorPack, capacity: int = 4096) -> None:
        self.backbone, self.pack, self.capacity = backbone, pack, capacity
        self.of_combination = Table(pack.shared())
        unknown = [-1] * len(pack.attributes)
        keys: list[Key] = [(combination, *unknown) for combination in range(len(pack.combinations))]
        self.of_key = Table(self._parts(keys))
        self.place: dict[Key, int] = {key: place for place, key in enumerate(keys)}
        self.no_prompts = pack.prompts[:0], torch.arange(0)  # they are in the table already

    def gather(self, keys: list[Key]) -> PackRows:
        """B keys -> one eliminator a row."""
        missing = list(dict.fromkeys(key for key in keys if key not in self.place))
        if missing and len(self.place) + len(missing) > self.capacity:
            self.of_key.clear()
            self.place, missing = {}, list(dict.fromkeys(keys))
        if missing:
            self.of_key.append(self._parts(missing))
            self.place.update((key, place) for place, key in enumerate(missing, len(self.place)))
        combination, place = torch.tensor([(key[0], self.place[key]) for key in keys]).unbind(1)
        gain, *prompts = self.of_key.rows(place)
        shared = self.of_combination.rows(combination)
        return PackRows(*self.no_prompts, *shared, transport_gain=gain, cached_prompts=tuple(prompts))

    @torch.inference_mode()
    def _parts(self, keys: list[Key]) -> tuple[Tensor, ...]:
        wanted = torch.tensor(keys)  # (B, 1 + m)
        rows = self.pack.for_rows(wanted[:, 0], wanted[:, 1:])
        return rows.transport_gain, *self.backbone.prompt_layers(rows)


class Table:
    """Tensors of the same length, side by side in one matrix: fetched one by one they took a tenth of a small batch.

    Args:
        parts: (length, ...) each.
    """

    def __init__(self, parts: tuple[Tensor, ...]) -> None:
        self.shapes = [part.shape[1:] for part in parts]
        self.widths = [shape.numel() for shape in self.shapes]
        self.matrix = _side_by_side(parts)

    def clear(self) -> None:
        self.matrix = self.matrix[:0]

    def append(self, parts: tuple[Tensor, ...]) -> None:
        self.matrix = torch.cat([self.matrix, _side_by_side(parts)])

    def rows(self, places: Tensor) -> list[Tensor]:
        """(B,) -> (B, ...) of each part."""
        fetched = self.matrix.index_select(0, places).split(self.widths, 1)
        return [part.view(len(places), *shape) for part, shape in zip(fetched, self.shapes, strict=True)]


def _side_by_side(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten(1) for part in parts], 1)
