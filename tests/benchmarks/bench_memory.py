"""Peak memory of the driver and of the largest worker of each job, for lakes of growing size: it must not grow.

    python tests/benchmarks/bench_memory.py [--users 50000 500000]

Each job runs as a user would start it. Buckets hold the same number of users in every lake. A propensity model, its
evaluation, validation and the audit take the same number of users; a backbone and eliminators train on all of them.
Memory is the unique set size (what would be free if the process ended), read 5 times a second; Ray's shared object
store is in none of it.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

USERS_PER_BUCKET, TRAINED_USERS, VALIDATED_USERS = 2_500, 5_000, 2_000
MIB = 2**20


def jobs(num_users: int, folder: Path) -> dict[str, list[str]]:
    """Command line of each job on a lake of so many users."""
    sample = [f"sample.random_fraction={TRAINED_USERS / num_users}", "sample.active_fraction=0", "model.d=64"]
    sample += [f"sample.test_fraction={min(0.2, TRAINED_USERS / num_users)}"]
    lake, runs = str(folder / "lake"), str(folder / "runs")
    passes = _sets(["optim.epochs=1", "optim.batch_crops=256", f"optim.validation_users={VALIDATED_USERS}"])
    fits = [*passes, *_sets(["transport.passes=4", "transport.later_passes=1"])]
    shape = [f"source.users={num_users}", f"build.num_buckets={num_users // USERS_PER_BUCKET}", "source.user_width=32"]
    return {
        "lake build": ["lake", "build", "synthetic", "--out", lake, *_sets(shape)],
        "train": ["train", "propensity", "--lake", lake, "--runs", runs, "--name", "r", *_sets(sample)],
        "evaluate": ["evaluate", "propensity", f"{runs}/r", *_sets(["num_bootstrap=20"])],
        "backbone": ["train", "backbone", "--lake", lake, "--runs", runs, "--name", "bb", *passes],
        "eliminators": ["train", "eliminators", "--backbone", f"{runs}/bb", "--runs", runs, "--name", "el", *fits],
        "audit": ["audit", f"{runs}/el", *_sets([f"max_users={TRAINED_USERS}", "num_permutations=2"])],
    }


def _sets(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def peak_memory(command: list[str]) -> dict[str, float]:
    """MiB of the driver and of the largest Ray worker at their highest."""
    peaks: dict[str, float] = defaultdict(float)
    words = [sys.executable, "-m", "mtrec_ray", *command, "--json"]
    job = psutil.Popen(words, stdout=subprocess.DEVNULL, cwd=Path(__file__).resolve().parents[2])
    while job.poll() is None:
        time.sleep(0.2)
        for process in [job, *job.children(recursive=True)] if job.is_running() else []:
            try:
                is_worker = process.name().startswith("ray::")
                if process == job or is_worker:
                    role = "worker" if is_worker else "driver"
                    peaks[role] = max(peaks[role], process.memory_full_info().uss / MIB)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it ended between two lines
    if job.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    return dict(peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of each job for lakes of growing size.")
    parser.add_argument("--users", type=int, nargs="+", default=[50_000, 500_000])
    found = {}
    for num_users in parser.parse_args().users:
        with tempfile.TemporaryDirectory() as folder:
            found[num_users] = {name: peak_memory(words) for name, words in jobs(num_users, Path(folder)).items()}
    table = Table("job", "process", *[f"{num_users:,} users" for num_users in found])
    for name in next(iter(found.values())):
        for role in ("driver", "worker"):
            table.add_row(name, role, *[f"{peaks[name][role]:.0f} MiB" for peaks in found.values()])
    Console().print(table)


if __name__ == "__main__":
    main()
