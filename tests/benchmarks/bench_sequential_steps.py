"""Positions a second of pre-training and tuning, beside the same model trained one position per forward, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_sequential_steps.py [--repeats N]

One position per forward is how sequential recommenders are commonly trained (ReChorus): each position is a row of its
own, its history padded to full length, one loss a row, and an optimizer step for every 256 rows. The loop is given the
same titles, layers, dropout, BPR loss, negatives and optimizers. It runs twice: computing all columns of a row to read
one, and the sparing way, which queries the wanted column alone. Its discriminators see every row, having no other use
for it.
Ways are interleaved and medians taken, so that other load slows all of them equally; times are processor seconds.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mtrec_ray.combinations import Combination
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.models.fairness_methods import EliminatorMethod
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.shapes import EliminatorConfig, SequentialConfig
from mtrec_ray.process import prepare_process
from mtrec_ray.steps.adversary import AdversaryGame
from mtrec_ray.steps.pretraining import Positions, bpr_losses, pretraining_step
from tests.benchmarks.measure import medians, one_core, result_table

NUM_TITLES, L, WIDTH = 1682, 20, 64
ATTRIBUTES = {"gender": 2, "age": 7, "occupation": 21}
SETTINGS: dict[str, Any] = {"weight": 0.3, "generator_lr": 2e-4, "averaging": 0.99, "class_power": 0.5}
ONE: list[Combination] = [("gender",)]
SEVEN: list[Combination] = [chosen for size in (1, 2, 3) for chosen in combinations(ATTRIBUTES, size)]
PRETRAINING_NEGATIVES, TUNING_NEGATIVES = 128, 16
ROWS = 256  # of a batch of the loop
TUNED_CROPS = (128, 64)
ONE_PASS, LOOP, SPARING_LOOP = "one pass", "a position per forward", "the same, sparing"


@dataclass(frozen=True)
class Batch:
    """Full crops, their users' values, and negative titles."""

    history: Tensor  # (B, L)
    targets: Tensor  # (B, L)
    values: Tensor  # (B, m)
    negatives: Tensor  # (M,)


def make_batch(num_crops: int, num_negatives: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    titles = torch.randint(NUM_TITLES, (num_crops, L + 1), generator=generator)
    values = [torch.randint(size, (num_crops,), generator=generator) for size in ATTRIBUTES.values()]
    negatives = torch.randint(NUM_TITLES, (num_negatives,), generator=generator)
    return Batch(titles[:, :-1], titles[:, 1:], torch.stack(values, 1), negatives)


def one_by_one(batch: Batch) -> list[Batch]:
    """Each position a row: its prefix padded to L columns; targets (ROWS, 1)."""
    prefixes = batch.history[:, None].expand(-1, L, -1).masked_fill(torch.ones(L, L, dtype=torch.bool).triu(1), -1)
    rows, targets = prefixes.flatten(0, 1), batch.targets.reshape(-1, 1)
    values = batch.values.repeat_interleave(L, 0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return [Batch(rows[part], targets[part], values[part], batch.negatives) for part in order.split(ROWS)]


def make_backbone() -> SequentialBackbone:
    """As paper B's authors ran it: one layer, one head."""
    backbone = SequentialBackbone(SequentialConfig(num_titles=NUM_TITLES, history=L, width=WIDTH))
    backbone.init_weights(torch.Generator().manual_seed(0))
    return backbone.train()


def make_optimizer(backbone: SequentialBackbone) -> torch.optim.Optimizer:
    return torch.optim.Adam(backbone.parameters(), lr=3e-3, fused=True)


def pretraining(batch: Batch) -> Callable[[], object]:
    """All positions of all crops in one pass."""
    backbone = make_backbone()
    optimizer, positions = make_optimizer(backbone), Positions(batch.history, batch.targets)
    return lambda: pretraining_step(backbone, optimizer, positions, batch.negatives, bpr_losses)


def pretraining_loop(batch: Batch, sparing: bool) -> Callable[[], object]:
    """The same positions one per forward."""
    backbone, parts = make_backbone(), one_by_one(batch)
    optimizer = make_optimizer(backbone)

    def work() -> None:
        for part in parts:
            optimizer.zero_grad(set_to_none=False)
            vectors = (
                backbone.user_vectors(part.history) if sparing else last_of_all(backbone(part.history), part.history)
            )
            bpr_losses(backbone, vectors, part.targets[:, 0], part.negatives).mean().backward()
            optimizer.step()

    return work


class OnePosition(EliminatorMethod):
    """An eliminator that predicts one position a row: T is 1."""

    def forward(self, history: Tensor, attribute_index: Tensor) -> Tensor:
        vectors = super().forward(history, attribute_index)  # (K, B, T, d)
        return torch.stack([last_of_all(one, history) for one in vectors])[:, :, None]


class OnePositionSparing(EliminatorMethod):
    """The same without computing the unused columns."""

    def forward(self, history: Tensor, attribute_index: Tensor) -> Tensor:
        return self.user_vectors(history, attribute_index)[:, :, None]


def make_game(method: type[EliminatorMethod], combinations: list[Combination]) -> AdversaryGame:
    pack = StackedEliminators(EliminatorConfig(), ATTRIBUTES, combinations, WIDTH)
    pack.init_weights(0)
    value_counts = [[100] * size for size in ATTRIBUTES.values()]
    return AdversaryGame(method(make_backbone(), pack), ATTRIBUTES, value_counts, 0, **SETTINGS)


def tuning(batch: Batch, combinations: list[Combination]) -> Callable[[], object]:
    """One step of the game on all crops."""
    game, positions = make_game(EliminatorMethod, combinations), Positions(batch.history, batch.targets)
    return lambda: game.step(positions, batch.values, batch.negatives)


def tuning_loop(batch: Batch, method: type[EliminatorMethod]) -> Callable[[], object]:
    """The same positions one per forward, by the same step."""
    game, parts = make_game(method, ONE), one_by_one(batch)

    def work() -> None:
        for part in parts:
            game.step(Positions(part.history, part.targets), part.values, part.negatives)

    return work


def last_of_all(vectors: Tensor, history: Tensor) -> Tensor:
    """(B, T, d) -> (B, d) at the last event of each row."""
    return vectors[torch.arange(len(history)), (history >= 0).sum(1) - 1]


def make_ways() -> dict[tuple[str, str], tuple[int, Callable[[], object]]]:
    """(what, how) -> positions of a call and the call."""
    batch, what = make_batch(64, PRETRAINING_NEGATIVES), "pre-training, 64 crops"
    positions = batch.targets.numel()
    ways: dict[tuple[str, str], tuple[int, Callable[[], object]]] = {
        (what, ONE_PASS): (positions, pretraining(batch)),
        (what, LOOP): (positions, pretraining_loop(batch, sparing=False)),
        (what, SPARING_LOOP): (positions, pretraining_loop(batch, sparing=True)),
    }
    for crops in TUNED_CROPS:
        batch, what = make_batch(crops, TUNING_NEGATIVES), f"tuning, {crops} crops"
        positions = batch.targets.numel()
        ways |= {
            (what, ONE_PASS): (positions, tuning(batch, ONE)),
            (what, LOOP): (positions, tuning_loop(batch, OnePosition)),
            (what, SPARING_LOOP): (positions, tuning_loop(batch, OnePositionSparing)),
            (what, "one pass, pack of seven"): (positions, tuning(batch, SEVEN)),
        }
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the sequential backbone's and the eliminators' steps.")
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    prepare_process(1)
    torch.manual_seed(0)
    ways = make_ways()
    found = medians({name: work for name, (_, work) in ways.items()}, repeats)
    note = f"processor seconds, medians of {repeats}"
    table = result_table(one_core(), note, "what", "how", "ms", "positions/s", "x one pass")
    shown = None
    for (what, how), seconds in found.items():
        if shown not in (None, what):
            table.add_section()
        shown, rate = what, ways[what, how][0] / seconds
        table.add_row(what, how, f"{seconds * 1e3:.1f}", f"{rate:,.0f}", f"{seconds / found[what, ONE_PASS]:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
