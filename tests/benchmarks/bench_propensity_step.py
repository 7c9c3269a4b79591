"""Speed of one two-tower training step against the pair-by-pair model and against the FLOP floor, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_propensity_step.py [--json] [--repeats N] [--dtype bfloat16]

The floor is the floating point operations that must be done (each tower row once, a block for its own rows, pairs
alone, no gradient of the features) over the best rate this machine reached on these very products in this run.
Ways and bare products are interleaved and medians taken, so that a busy neighbour slows all of them alike.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mtrec_ray.models.two_tower import TwoTower, TwoTowerConfig
from mtrec_ray.steps.batch import PairBatch, make_pair_batch
from mtrec_ray.steps.precision import use_fast_matmul
from mtrec_ray.steps.propensity import loss_and_gradients
from tests.steps.reference import PairByPair, deduplicated_loss

NUM_TITLES, TITLE_WIDTH, USER_WIDTH, D, NUM_GROUPS = 500, 800, 512, 512, 4
ADAM = "Adam alone, fused"
SETTINGS = {"grouped": (745, 11), "distinct": (8192, 1)}  # users, pairs of each


def make_batch(setting: str, device: str) -> PairBatch:
    """8192 pairs (8195 when grouped) of random users and titles in four equal groups."""
    num_users, pairs_each = SETTINGS[setting]
    rng = np.random.default_rng(0)
    num_pairs = num_users * pairs_each
    return make_pair_batch(
        rng.standard_normal((num_users, USER_WIDTH)).astype(np.float16),
        rng.integers(0, NUM_GROUPS, num_users),
        np.arange(num_users + 1) * pairs_each,
        rng.integers(0, NUM_TITLES, num_pairs),
        rng.integers(0, 2, num_pairs),
        torch.from_numpy(rng.standard_normal((NUM_TITLES, TITLE_WIDTH)).astype(np.float16)).to(device),
        num_groups=NUM_GROUPS,
        device=device,
    )


def products(batch: PairBatch) -> list[tuple[tuple[int, int, int], int]]:
    """((n, k, m), times) of every matrix product that must be done, forward and backward."""
    users, titles = batch.user_features.shape[0], batch.title_features.shape[0]
    sizes = np.diff(batch.group_offsets).tolist()
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
    return towers + [part for size in sizes for part in (((size, D, D), 2), ((D, size, D), 1))]


def flops_of(batch: PairBatch) -> float:
    """Operations that must be done in one step."""
    matrix = sum(2.0 * n * k * m * times for (n, k, m), times in products(batch))
    return matrix + 3 * 2.0 * batch.num_pairs * D


def make_products(batch: PairBatch, device: str) -> dict[str, tuple[float, Callable[[], object]]]:
    """Each distinct product of the step by name: its operations and the call."""
    calls = {}
    for n, k, m in dict.fromkeys(shape for shape, _ in products(batch)):
        a, b, out = torch.randn(n, k, device=device), torch.randn(k, m, device=device), torch.empty(n, m, device=device)
        calls[f"{n} x {k} x {m}"] = (2.0 * n * k * m, lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
    return calls


def seconds(work: Callable[[], object]) -> float:
    """Time of one call: processor seconds on a CPU, so that time lent to neighbours does not count; else wall time."""
    if not torch.cuda.is_available():
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def make_ways(batch: PairBatch, device: str, dtypes: list[torch.dtype]) -> dict[str, Callable[[], object]]:
    """Each way to compute loss and gradients, and the optimizer alone; 'stock' runs without the fast path."""
    config = TwoTowerConfig(USER_WIDTH, TITLE_WIDTH, d=D, num_groups=NUM_GROUPS, group_block="dense")
    model = TwoTower(config).to(device)
    model.init_weights(torch.Generator(device).manual_seed(0))
    plain = PairByPair(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)
    dense = batch.user_features.shape[0] < batch.num_pairs  # what autograd does faster

    def autograd(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def work() -> None:
            for parameter in model.parameters():
                parameter.grad = None
            loss().backward()

        return work

    return {
        "pair by pair, stock": autograd(lambda: plain(batch)),
        "pair by pair": autograd(lambda: plain(batch)),
        "de-duplicated, autograd": autograd(lambda: deduplicated_loss(model, batch, dense=dense)),
        "de-duplicated, hand-scheduled": lambda: loss_and_gradients(model, batch),
        **{
            f"hand-scheduled, {str(dtype).removeprefix('torch.')}": lambda dtype=dtype: loss_and_gradients(
                model, batch, compute_dtype=dtype
            )
            for dtype in dtypes
        },
        ADAM: optimizer.step,
    }


def measure(setting: str, device: str, dtypes: list[torch.dtype], repeats: int, fast: str) -> dict:
    """Medians of all ways and of the bare products, interleaved; the rate is the best product's."""
    batch = make_batch(setting, device)
    ways, bare = make_ways(batch, device, dtypes), make_products(batch, device)
    calls = {**ways, **{name: call for name, (_, call) in bare.items()}}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            torch.set_float32_matmul_precision("highest" if "stock" in name else fast)
            elapsed = seconds(call)
            if repeat:  # the first round warms up
                times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rates = {name: flops / medians[name] for name, (flops, _) in bare.items()}
    return {
        "setting": setting,
        "pairs": batch.num_pairs,
        "flops": flops_of(batch),
        "matmul_flops_per_s": rates,
        "floor_s": flops_of(batch) / max(rates.values()),
        "adam_s": medians[ADAM],
        "step_s": {name: medians[name] for name in ways if name != ADAM},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of one two-tower training step.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", action="append", default=[], help="further type of the products, e.g. bfloat16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = [getattr(torch, name) for name in arguments.dtype or (["bfloat16"] if device == "cuda" else [])]
    fast = "medium" if use_fast_matmul() else torch.get_float32_matmul_precision()
    report = {
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, one core",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
        "fast_matmul": fast == "medium",
        "settings": [measure(setting, device, dtypes, arguments.repeats, fast) for setting in SETTINGS],
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)


def show(report: dict) -> None:
    """One table: rates, ratios, with and without the optimizer."""
    table = Table(
        title=f"{report['machine']}, {report['date']}, torch {report['torch']}, commit {report['commit']}",
        caption=f"{report['command']}; fast path {'on' if report['fast_matmul'] else 'off'}",
    )
    for column in ("users", "way", "ms", "pairs/s", "x stock", "of floor", "+ Adam ms", "x stock", "of floor"):
        table.add_column(column, justify="left" if column in ("users", "way") else "right")
    for result in report["settings"]:
        steps, adam, floor = result["step_s"], result["adam_s"], result["floor_s"]
        stock = steps["pair by pair, stock"]
        rate = max(result["matmul_flops_per_s"].values()) / 1e9
        rows = {**steps, f"floor: {result['flops'] / 1e9:.2f} GFLOP at {rate:.0f} GFLOP/s": floor}
        for name, value in rows.items():
            after = [
                f"{(value + adam) * 1e3:.1f}",
                f"{(stock + adam) / (value + adam):.1f}",
                f"{floor / (value + adam):.0%}",
            ]
            table.add_row(
                result["setting"],
                name,
                f"{value * 1e3:.1f}",
                f"{result['pairs'] / value:,.0f}",
                f"{stock / value:.1f}",
                f"{floor / value:.0%}",
                *(after if name in steps else ["", "", ""]),
            )
        table.add_section()
    Console(width=150).print(table)


def processor() -> str:
    """Model name of the first core."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor()])[0]


def commit() -> str:
    """Short hash of the checked-out commit, 'none' before the first."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "none"


if __name__ == "__main__":
    main()
