"""Models and batches for the tests of the step: float64, every parameter away from its special starting value."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mtrec_ray.models.group_blocks import GROUP_BLOCKS
from mtrec_ray.models.two_tower import TwoTower, TwoTowerConfig
from mtrec_ray.steps.batch import PairBatch, make_pair_batch
from mtrec_ray.workers import AllReduce

USER_WIDTH, TITLE_WIDTH, NUM_TITLES, NUM_GROUPS, D = 6, 7, 9, 3, 8
ONE_HOT = (1, 0, 2, 1, 0)  # column of each territory
DISCOVERIES = (900, 0, 40, 300, 7)  # of each territory
BLOCKS = ("none", *GROUP_BLOCKS)
Result = TypeVar("Result")


def make_model(seed: int = 0, *, perturb: bool = True, dtype: torch.dtype = torch.float64, **settings) -> TwoTower:
    """A small model; `perturb` moves every parameter, so that nothing is zero or one by construction."""
    generator = torch.Generator().manual_seed(seed)
    num_groups = NUM_GROUPS if settings.get("group_block", "none") != "none" else 1
    shape = {"d": D, "num_groups": num_groups, "discoveries": DISCOVERIES, **settings}
    config = TwoTowerConfig(USER_WIDTH, TITLE_WIDTH, **shape)
    model = TwoTower(config).to(dtype)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters() if perturb else ():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def make_users(seed: int, pairs_each: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """What `make_pair_batch` takes of each user: (U,) pairs and groups decide, the rest is random."""
    rng = np.random.default_rng(seed)
    num_pairs = int(pairs_each.sum())
    return {
        "user_features": rng.standard_normal((len(pairs_each), USER_WIDTH)),
        "user_group": groups,
        "offsets": np.concatenate([[0], pairs_each.cumsum()]),
        "title_index": rng.integers(0, NUM_TITLES, num_pairs),
        "labels": rng.integers(0, 2, num_pairs),
        "user_territory": rng.integers(0, len(ONE_HOT), len(pairs_each)),
        "prior": rng.standard_normal(num_pairs),
    }


def make_batch(users: dict[str, Any], dtype: torch.dtype = torch.float64) -> PairBatch:
    """The batch of these users over one fixed catalogue."""
    catalogue = torch.randn(NUM_TITLES, TITLE_WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return make_pair_batch(**users, catalogue=catalogue, num_groups=NUM_GROUPS, dtype=dtype)


def split_users(users: dict[str, np.ndarray], parts: list[slice]) -> list[dict[str, np.ndarray]]:
    """Each worker's users and their pairs."""
    workers = []
    for part in parts:
        offsets = users["offsets"][part.start : part.stop + 1]
        pairs = slice(offsets[0], offsets[-1])
        of_users = {name: users[name][part] for name in ("user_features", "user_group", "user_territory")}
        of_pairs = {name: users[name][pairs] for name in ("title_index", "labels", "prior")}
        workers.append(of_users | of_pairs | {"offsets": offsets - offsets[0]})
    return workers


def in_lock_step(work: Callable[[int, AllReduce], Result], num_workers: int = 2) -> list[Result]:
    """`work(rank, all_reduce)` of workers that are threads: every all_reduce waits for all of them."""
    barrier, parts = threading.Barrier(num_workers, timeout=30), dict[int, Tensor]()

    def run(rank: int) -> Result:
        def all_reduce(tensor: Tensor) -> Tensor:
            parts[rank] = tensor.clone()
            barrier.wait()
            tensor.copy_(torch.stack([parts[r] for r in sorted(parts)]).sum(0))
            barrier.wait()
            return tensor

        return work(rank, all_reduce)

    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(run, range(num_workers)))
