"""Speed of one two-tower training step against the pair-by-pair model and against the FLOP floor, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_propensity_step.py [--against CHECKOUT] [--block none] ...

The floor is the floating point operations that must be done (each tower row once, a block for its own rows, pairs
alone, no gradient of the features) over the best rate this machine reached on these very products in this run.
All variants and bare products take turns and medians are reported, so a busy machine slows all of them alike.
`--against` adds the step of another checkout to the same run, for example of `git worktree add /tmp/before COMMIT`.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mtrec_ray.models import two_tower
from mtrec_ray.models.group_blocks import GROUP_BLOCKS
from mtrec_ray.process import prepare_process, use_fast_matmul
from mtrec_ray.steps import batch as pair_batch
from mtrec_ray.steps import propensity
from mtrec_ray.steps.batch import PairBatch
from tests.benchmarks.measure import medians, one_core, result_table, seconds_of
from tests.steps.reference import PairByPair, deduplicated_loss

NUM_TITLES, TITLE_WIDTH, USER_WIDTH, D, NUM_GROUPS = 500, 800, 512, 512, 4
ADAM, STEP, OTHER_STEP = "Adam alone, fused", "the step", "the step of the other checkout"
STOCK = "pair by pair, stock"
SETTINGS = {"grouped": (745, 11), "distinct": (8192, 1)}  # users, pairs of each


class Code(NamedTuple):
    """The modules of one checkout."""

    two_tower: ModuleType
    batch: ModuleType
    propensity: ModuleType


HERE = Code(two_tower, pair_batch, propensity)


def load_code(checkout: str) -> Code:
    """Import the step of another checkout beside this one's."""
    own = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "mtrec_ray"}
    sys.path.insert(0, str(Path(checkout).resolve()))
    names = ("models.two_tower", "steps.batch", "steps.propensity")
    code = Code(*[importlib.import_module(f"mtrec_ray.{name}") for name in names])
    sys.path.pop(0)
    assert str(code.propensity.__file__).startswith(str(Path(checkout).resolve())), code.propensity.__file__
    sys.modules.update(own)
    return code


def make_batch(setting: str, device: str, code: Code = HERE) -> PairBatch:
    """8192 pairs (8195 when grouped) of random users and titles in four equal groups."""
    num_users, pairs_each = SETTINGS[setting]
    rng = np.random.default_rng(0)
    num_pairs = num_users * pairs_each
    return code.batch.make_pair_batch(
        rng.standard_normal((num_users, USER_WIDTH)).astype(np.float16),
        rng.integers(0, NUM_GROUPS, num_users),
        np.arange(num_users + 1) * pairs_each,
        rng.integers(0, NUM_TITLES, num_pairs),
        rng.integers(0, 2, num_pairs),
        torch.from_numpy(rng.standard_normal((NUM_TITLES, TITLE_WIDTH)).astype(np.float16)).to(device),
        num_groups=NUM_GROUPS,
        user_territory=np.zeros(num_users, np.int64),
        device=device,
    )


def products(batch: PairBatch, block: str) -> list[tuple[tuple[int, int, int], int]]:
    """((n, k, m), times) of every matrix product that must be done, forward and backward."""
    users, titles = batch.user_features.shape[0], batch.title_features.shape[0]
    towers = [
        ((users, USER_WIDTH, D), 1),  # first layer
        ((USER_WIDTH, users, D), 1),  # its weight gradient
        ((users, D, D), 2),  # second layer and its input gradient
        ((D, users, D), 1),
        ((titles, TITLE_WIDTH, D), 1),
        ((TITLE_WIDTH, titles, D), 1),
        ((titles, D, D), 2),
        ((D, titles, D), 1),
    ]
    sizes = [] if block == "none" else np.diff(batch.group_offsets).tolist()
    return towers + [part for size in sizes for part in (((size, D, D), 2), ((D, size, D), 1))]


def flops_of(batch: PairBatch, block: str) -> float:
    """Operations that must be done in one step."""
    matrix = sum(2.0 * n * k * m * times for (n, k, m), times in products(batch, block))
    return matrix + 3 * 2.0 * batch.num_pairs * D


def make_products(batch: PairBatch, block: str, device: str) -> dict[str, tuple[float, Callable[[], object]]]:
    """Each distinct product of the step by name: its operations and the call."""
    calls = {}
    for n, k, m in dict.fromkeys(shape for shape, _ in products(batch, block)):
        a, b, out = torch.randn(n, k, device=device), torch.randn(k, m, device=device), torch.empty(n, m, device=device)
        calls[f"{n} x {k} x {m}"] = (2.0 * n * k * m, lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
    return calls


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call on a CPU, else wall time."""
    if not torch.cuda.is_available():
        return seconds_of(work)
    torch.cuda.synchronize()
    return seconds_of(lambda: (work(), torch.cuda.synchronize()), time.perf_counter)


def make_model(code: Code, block: str, device: str) -> two_tower.TwoTower:
    """The same weights whatever the checkout."""
    num_groups = 1 if block == "none" else NUM_GROUPS
    config = code.two_tower.TwoTowerConfig(USER_WIDTH, TITLE_WIDTH, d=D, num_groups=num_groups, group_block=block)
    model = code.two_tower.TwoTower(config).to(device)
    model.init_weights(torch.Generator(device).manual_seed(0))
    return model


def make_variants(
    setting: str, block: str, device: str, dtypes: list[torch.dtype], other: Code | None
) -> dict[str, Callable[[], object]]:
    """Each variant that computes loss and gradients, and the optimizer alone; 'stock' runs without the fast path."""
    batch, model = make_batch(setting, device), make_model(HERE, block, device)
    plain = PairByPair(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)
    dense = batch.user_features.shape[0] < batch.num_pairs  # what autograd does faster

    def autograd(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def work() -> None:
            model.zero_grad(set_to_none=True)
            loss().backward()

        return work

    variants: dict[str, Callable[[], object]] = {
        STOCK: autograd(lambda: plain(batch)),
        "distinct rows, torch's operations": autograd(lambda: deduplicated_loss(model, batch, dense=dense)),
        STEP: lambda: propensity.loss_and_gradients(model, batch),
    }
    for dtype in dtypes:
        name = f"{STEP}, {str(dtype).removeprefix('torch.')}"
        variants[name] = lambda dtype=dtype: propensity.loss_and_gradients(model, batch, compute_dtype=dtype)
    if other is not None:
        other_batch, other_model = make_batch(setting, device, other), make_model(other, block, device)
        variants[OTHER_STEP] = lambda: other.propensity.loss_and_gradients(other_model, other_batch)
    variants[ADAM] = optimizer.step
    return variants


def measure(
    setting: str, block: str, device: str, dtypes: list[torch.dtype], repeats: int, fast: str, other: Code | None
) -> dict:
    """Medians of all variants and of the bare products, which take turns; the rate is the best product's."""
    batch = make_batch(setting, device)
    variants = make_variants(setting, block, device, dtypes, other)
    bare = make_products(batch, block, device)
    stock = STOCK, variants.pop(STOCK)
    calls = {**variants, **{name: call for name, (_, call) in bare.items()}}

    def timed(work: Callable[[], object]) -> float:
        torch.set_float32_matmul_precision("highest" if work is stock[1] else fast)
        return seconds(work)

    found = medians(dict([stock]) | calls, repeats, timed)
    rate = max(flops / found[name] for name, (flops, _) in bare.items())
    return {
        "setting": setting,
        "pairs": batch.num_pairs,
        "flops": flops_of(batch, block),
        "rate": rate,
        "floor_s": flops_of(batch, block) / rate,
        "adam_s": found[ADAM],
        "step_s": {name: found[name] for name in (STOCK, *variants) if name != ADAM},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of one two-tower training step.")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", action="append", default=[], help="further type of the products, e.g. bfloat16")
    parser.add_argument("--block", choices=("none", *GROUP_BLOCKS), default="dense", help="group block")
    parser.add_argument("--against", metavar="CHECKOUT", help="another checkout, whose step is measured as well")
    arguments = parser.parse_args()
    prepare_process(1)  # as training does
    other = load_code(arguments.against) if arguments.against else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = [getattr(torch, name) for name in arguments.dtype or (["bfloat16"] if device == "cuda" else [])]
    fast = "medium" if use_fast_matmul() else torch.get_float32_matmul_precision()
    machine = torch.cuda.get_device_name() if device == "cuda" else one_core()
    columns = ("users", "variant", "ms", "pairs/s", "x step", "of floor", "+ Adam ms", "x step", "of floor")
    table = result_table(machine, f"fast path {'on' if fast == 'medium' else 'off'}", *columns)
    for setting in SETTINGS:
        show(table, measure(setting, arguments.block, device, dtypes, arguments.repeats, fast, other))
    Console(width=150).print(table)


def show(table: Table, result: dict) -> None:
    """A row of each variant: rates, ratios, with and without the optimizer."""
    steps, adam, floor = result["step_s"], result["adam_s"], result["floor_s"]
    step = steps[STEP]
    rows = {**steps, f"floor: {result['flops'] / 1e9:.2f} GFLOP at {result['rate'] / 1e9:.0f} GFLOP/s": floor}
    for name, value in rows.items():
        own = [f"{value * 1e3:.1f}", f"{result['pairs'] / value:,.0f}", f"{value / step:.2f}", f"{floor / value:.0%}"]
        both = value + adam
        after = [f"{both * 1e3:.1f}", f"{both / (step + adam):.2f}", f"{floor / both:.0%}"]
        table.add_row(result["setting"], name, *own, *(after if name in steps else []))
    table.add_section()


if __name__ == "__main__":
    main()
