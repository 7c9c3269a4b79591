"""One loaded bundle: a batch takes one forward, though each row has its combination.

The backbone alone is one more combination, of no attribute, whose gate closes the prompts, so a batch is never split.

Legend: `B` rows, `N` titles, `T` territories, `m` attributes, `d` width.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.combinations import Combination
from mtrec_ray.lake.schema import offered_in
from mtrec_ray.models.closed_form import ClosedFormMaps, move
from mtrec_ray.models.eliminators import CombinationParts, GatheredEliminators, StackedEliminators
from mtrec_ray.models.sequential import SequentialBackbone

MAX_CELLS = 8_000_000  # maximum rows x titles scored at once: bounds the memory of a large batch and catalogue
Key = tuple[int, ...]  # (combination, *values); -1 is an unknown value


@dataclass(frozen=True)
class Query:
    """One request as indices; `serving.service` makes and checks them."""

    history: tuple[int, ...]  # titles, oldest first, at least one
    values: tuple[int, ...]  # (m,) attribute values, -1 unknown
    combination: int  # index in `Engine.combinations`
    territory: int
    k: int
    exclude: Collection[int] = ()  # titles to leave out


@dataclass(frozen=True)
class Ranked:
    """Titles, best first."""

    titles: list[int]
    scores: list[float]


class Engine:
    """Weights and catalogue of one bundle, nothing that grows with the users."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest, self.version = bundle.manifest, bundle.manifest.version
        self.backbone = bundle.backbone().remember_titles()
        pack = bundle.eliminators().with_identity()
        self.combinations: dict[Combination, int] = {c: index for index, c in enumerate(pack.combinations)}
        self.warnings = {
            (combination, exclude): self.manifest.warnings(combination, exclude)
            for combination in self.combinations
            for exclude in (False, True)
        }
        closed_form = isinstance(pack, ClosedFormMaps)
        self.bank = ClosedFormBank(self.backbone, pack) if closed_form else EliminatorBank(self.backbone, pack)
        titles, territories = bundle.titles(), self.manifest.territories
        self.ids, names = titles["title_id"].to_pylist(), titles["name"].to_pylist()
        self.names = [name or title_id for name, title_id in zip(names, self.ids, strict=True)]
        self.row_of = {title_id: row for row, title_id in enumerate(self.ids)}
        self.territory_of = {name: row for row, name in enumerate(territories)}
        self.unavailable = torch.from_numpy(~offered_in(titles, territories))  # (T, N)
        self.all_offered = not self.unavailable.any()
        self.title_vectors = self.backbone.title_vectors().t().contiguous()  # (d, N)
        self.popular = bundle.popular().tolist()
        self.two_tower, part = bundle.propensity(), self.manifest.propensity
        self.group_of = part.group_of_territory if part else []  # territory -> its group
        if self.two_tower is not None:
            features = torch.from_numpy(fixed_width_matrix(titles["embedding"]).copy())
            with torch.inference_mode():
                self.propensity_vectors = self.two_tower.title_vectors(features)  # (N, d)

    @torch.inference_mode()
    def recommend(self, queries: list[Query]) -> list[Ranked]:
        """The best titles of each query."""
        size = max(1, MAX_CELLS // len(self.ids))
        parts = [queries[start : start + size] for start in range(0, len(queries), size)]
        return [ranked for part in parts for ranked in self._rank(part)]

    def user_vectors(self, queries: list[Query]) -> Tensor:
        """(B, d), each row under its own combination."""
        length = self.backbone.config.history
        history = np.full((len(queries), 1, length), -1, dtype=np.int64)
        for row, query in enumerate(queries):
            recent = query.history[-length:]
            history[row, 0, : len(recent)] = recent
        return self.bank.user_vectors(torch.from_numpy(history), [(q.combination, *q.values) for q in queries])

    def _rank(self, queries: list[Query]) -> list[Ranked]:
        scores = self.user_vectors(queries) @ self.title_vectors  # (B, N)
        if not self.all_offered:
            scores.masked_fill_(self.unavailable[torch.tensor([q.territory for q in queries])], -torch.inf)
        rows = np.repeat(np.arange(len(queries)), [len(q.exclude) for q in queries])
        if len(rows):
            columns = np.fromiter(chain.from_iterable(q.exclude for q in queries), dtype=np.int64, count=len(rows))
            scores.view(-1)[torch.from_numpy(rows * scores.shape[1] + columns)] = -torch.inf
        k = min(max(query.k for query in queries), scores.shape[1])
        best, titles = (part.tolist() for part in scores.topk(k))
        return [_cut(t, s, query.k) for t, s, query in zip(titles, best, queries, strict=True)]

    def most_popular(self, territory: int, k: int, exclude: frozenset[int] = frozenset()) -> Ranked:
        """Titles of a territory by first-time discoveries, scored by 1 / rank."""
        titles = [title for title in self.popular[territory] if title >= 0 and title not in exclude][:k]
        return Ranked(titles, [1.0 / rank for rank in range(1, len(titles) + 1)])

    @torch.inference_mode()
    def propensities(
        self, embedding: np.ndarray, territory: int, titles: list[int] | None, k: int, watched: Collection[int] = ()
    ) -> Ranked:
        """First-discovery propensities of one user of average activity; `embedding` (user width,)."""
        model = self.two_tower
        assert model is not None
        group, own = torch.tensor([self.group_of[territory]]), torch.tensor([territory])
        user = model.user_vectors(torch.from_numpy(embedding)[None], group, own)  # (1, d)
        seen = torch.zeros(1, len(self.ids), dtype=torch.bool)
        seen[0, list(watched)] = True
        logits = model.logits(user, self.propensity_vectors)
        logits = model.with_prior(logits, territory, slice(None), None, seen)[0]
        if titles is not None:
            return Ranked(titles, logits[titles].sigmoid().tolist())
        best, rows = logits.masked_fill_(self.unavailable[territory], -torch.inf).topk(min(k, len(logits)))
        offered = _cut(rows.tolist(), best.tolist(), k).titles
        return Ranked(offered, best[: len(offered)].sigmoid().tolist())


def _cut(titles: list[int], scores: list[float], k: int) -> Ranked:
    """The first k, without those that are not offered (score -inf)."""
    count = len(scores[:k]) - scores[:k].count(-torch.inf)
    return Ranked(titles[:count], scores[:count])


class KeyedTable:
    """Named tensors for each requested key (combination, values), made when first asked for.

    Beyond `capacity` keys it is cleared; 4,096 keys of closed-form maps of width 64 take 68 MB, at most twice that.
    """

    def __init__(self, make: Callable[[list[Key]], dict[str, Tensor]], keys: list[Key], capacity: int) -> None:
        self.make, self.capacity = make, capacity
        self.table, self.row_of = Table(make(keys)), {key: row for row, key in enumerate(keys)}

    def rows(self, keys: list[Key]) -> dict[str, Tensor]:
        """B keys -> (B, ...) of each part."""
        missing = list(dict.fromkeys(key for key in keys if key not in self.row_of))
        if missing and len(self.row_of) + len(missing) > self.capacity:
            self.table.clear()
            self.row_of, missing = {}, list(dict.fromkeys(keys))
        if missing:
            self.table.append(self.make(missing))
            self.row_of.update((key, row) for row, key in enumerate(missing, len(self.row_of)))
        return self.table.rows(torch.tensor([self.row_of[key] for key in keys]))


def unknown_keys(pack: StackedEliminators | ClosedFormMaps) -> list[Key]:
    """Each combination of a user who tells no value."""
    return [(combination, *[-1] * len(pack.attributes)) for combination in range(len(pack.combinations))]


class EliminatorBank:
    """Gathers the eliminators of a batch, one per row, by one fetch from each of two tables.

    The second holds what also depends on the user's attribute values.
    """

    def __init__(self, backbone: SequentialBackbone, pack: StackedEliminators, capacity: int = 4096) -> None:
        self.backbone, self.pack = backbone, pack
        self.of_combination = Table(pack.parts)
        self.of_key = KeyedTable(self._parts, unknown_keys(pack), capacity)

    def user_vectors(self, history: Tensor, keys: list[Key]) -> Tensor:
        """(B, 1, L) histories, B keys -> (B, d)."""
        return self.backbone.user_vectors(history, eliminators=self.gather(keys))[:, 0]

    def gather(self, keys: list[Key]) -> GatheredEliminators:
        """B keys -> one eliminator per row."""
        own = self.of_key.rows(keys)
        combination = torch.tensor([key[0] for key in keys])
        return GatheredEliminators(
            prompt_table=self.pack.prompts[:0],  # the second table holds the prompts
            prompt_index=combination[None, :0],
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


class ClosedFormBank:
    """Gathers the composed maps of a batch, one per row."""

    def __init__(self, backbone: SequentialBackbone, pack: ClosedFormMaps, capacity: int = 4096) -> None:
        self.backbone, self.pack = backbone, pack
        self.of_key = KeyedTable(self._parts, unknown_keys(pack), capacity)

    def user_vectors(self, history: Tensor, keys: list[Key]) -> Tensor:
        """(B, 1, L) histories, B keys -> (B, d)."""
        vectors, maps = self.backbone.user_vectors(history[:, 0]), self.of_key.rows(keys)
        moved = move(vectors[:, None], maps["weight"], maps["bias"], self.backbone)[:, 0]
        ignores = torch.tensor([bool(self.pack.combinations[key[0]]) for key in keys])
        return torch.where(ignores[:, None], moved, vectors)

    @torch.inference_mode()
    def _parts(self, keys: list[Key]) -> dict[str, Tensor]:
        wanted, width = torch.tensor(keys), self.pack.bias.shape[1]  # (B, 1 + m)
        parts = {"weight": torch.empty(len(keys), width, width), "bias": torch.empty(len(keys), width)}
        for number in wanted[:, 0].unique().tolist():
            rows = (wanted[:, 0] == number).nonzero()[:, 0]
            composed = self.pack.compose(self.pack.combinations[number], wanted[rows, 1:])
            parts["weight"][rows], parts["bias"][rows] = composed
        return parts


class Table:
    """Named tensors (length, ...) in one matrix, because single fetches take longer."""

    def __init__(self, parts: dict[str, Tensor]) -> None:
        self.shapes = {name: part.shape[1:] for name, part in parts.items()}
        self.widths = [shape.numel() for shape in self.shapes.values()]
        self.storage, self.length = torch.empty(0, sum(self.widths)), 0
        self.append(parts)

    def append(self, parts: dict[str, Tensor]) -> None:
        """Add rows; the storage doubles, so that a row is copied twice at most on average."""
        rows = torch.cat([part.flatten(1) for part in parts.values()], 1)
        stop = self.length + len(rows)
        if stop > len(self.storage):
            wider = torch.empty(max(stop, 2 * len(self.storage)), rows.shape[1])
            wider[: self.length] = self.storage[: self.length]
            self.storage = wider
        self.storage[self.length : stop] = rows
        self.length = stop

    def clear(self) -> None:
        """Remove all rows; the storage stays."""
        self.length = 0

    def rows(self, rows: Tensor) -> dict[str, Tensor]:
        """(B,) -> (B, ...) of each part."""
        fetched = self.storage.index_select(0, rows).split(self.widths, 1)
        named = zip(self.shapes.items(), fetched, strict=True)
        return {name: part.view(len(rows), *shape) for (name, shape), part in named}
