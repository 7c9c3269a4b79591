"""Gathers the eliminators of a batch, one per row, by one fetch from each of two tables.

The second holds what also depends on the user's attribute values: one row per requested (combination, values).
Legend: `B` rows, `m` attributes.
"""

import torch
from torch import Tensor

from mtrec_ray.models.eliminators import CombinationParts, GatheredEliminators, StackedEliminators
from mtrec_ray.models.sequential import SequentialBackbone

Key = tuple[int, ...]  # (combination, *values); -1 is an unknown value


class EliminatorBank:
    """Gathers the eliminators of a batch.

    Beyond `capacity` keys the second table is cleared; 4,096 keys with 13 prompts of width 64 take 27 MB a layer.
    """

    def __init__(self, backbone: SequentialBackbone, pack: StackedEliminators, capacity: int = 4096) -> None:
        self.backbone, self.pack, self.capacity = backbone, pack, capacity
        self.of_combination = Table(pack.parts)
        unknown = [-1] * len(pack.attributes)
        keys: list[Key] = [(combination, *unknown) for combination in range(len(pack.combinations))]
        self.of_key = Table(self._parts(keys))
        self.row_of: dict[Key, int] = {key: row for row, key in enumerate(keys)}

    def gather(self, keys: list[Key]) -> GatheredEliminators:
        """B keys -> one eliminator per row."""
        missing = list(dict.fromkeys(key for key in keys if key not in self.row_of))
        if missing and len(self.row_of) + len(missing) > self.capacity:
            self.of_key.matrix = self.of_key.matrix[:0]
            self.row_of, missing = {}, list(dict.fromkeys(keys))
        if missing:
            self.of_key.append(self._parts(missing))
            self.row_of.update((key, row) for row, key in enumerate(missing, len(self.row_of)))
        combination, row = torch.tensor([(key[0], self.row_of[key]) for key in keys]).unbind(1)
        own = self.of_key.rows(row)
        return GatheredEliminators(
            prompt_table=self.pack.prompts[:0],  # the second table holds the prompts
            prompt_index=row[None, :0],
            parts=CombinationParts(**self.of_combination.rows(combination)),
            transport_gain=own.pop("transport_gain"),
            cached_prompts=tuple(own.values()),
        )

    @torch.inference_mode()
    def _parts(self, keys: list[Key]) -> dict[str, Tensor]:
        wanted = torch.tensor(keys)  # (B, 1 + m)
        rows = self.pack.for_rows(wanted[:, 0], wanted[:, 1:])
        prompts = self.backbone.prompt_keys_values(rows)
        return {"transport_gain": rows.transport_gain} | {f"prompts_{n}": part for n, part in enumerate(prompts)}


class Table:
    """Named tensors (length, ...) in one matrix, because single fetches take longer."""

    def __init__(self, parts: dict[str, Tensor]) -> None:
        self.shapes = {name: part.shape[1:] for name, part in parts.items()}
        self.widths = [shape.numel() for shape in self.shapes.values()]
        self.matrix = _concatenate(parts)

    def append(self, parts: dict[str, Tensor]) -> None:
        self.matrix = torch.cat([self.matrix, _concatenate(parts)])

    def rows(self, rows: Tensor) -> dict[str, Tensor]:
        """(B,) -> (B, ...) of each part."""
        fetched = self.matrix.index_select(0, rows).split(self.widths, 1)
        named = zip(self.shapes.items(), fetched, strict=True)
        return {name: part.view(len(rows), *shape) for (name, shape), part in named}


def _concatenate(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten(1) for part in parts.values()], 1)
