"""How Ray Tune drives a trial: inside its own process, which the next trial reuses, with peers for further workers.

Peers are actors in the trial's own placement group, so Tune reserves all that a trial needs at once, a stopped or dead
trial takes its peers with it, and no trial waits for a worker group to start. A Ray Train run nested in every trial
costs about twenty seconds each, and one that ASHA stopped kept its workers: the next trial waited for ever.
"""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray
import torch
from ray import tune

from mtrec_ray.tuning.data import TrialCache
from mtrec_ray.tuning.kinds import make_trial
from mtrec_ray.tuning.trial import Trial, TrialSpec

MakeTrialSpec = Callable[[dict[str, Any]], TrialSpec]
"""A trial's drawn parameters -> its plan."""


class Worker:
    """One rank of a trial; all ranks go through the same calls."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size, self.cache = rank, world_size, TrialCache()
        self.trial: Trial  # from `begin` on

    def join(self, address: str) -> None:
        """Meet the other ranks; returns when all are there."""
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://{address}", rank=self.rank, world_size=self.world_size
        )

    def begin(self, plan: TrialSpec) -> None:
        """The next trial."""
        self.trial = make_trial(plan, self.cache, self.rank, self.world_size)

    def advance(self) -> dict[str, float]:
        """To the next look; the figures are the same on every rank."""
        return self.trial.advance()

    def load(self, files: dict[str, bytes], folder: Path) -> None:
        """Go on from a checkpoint, which may have been written on another machine."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        self.trial.load(folder)


class TrialProcess(tune.Trainable):
    """Rank 0 of trial after trial."""

    def setup(self, config: dict[str, Any], *, make_trial_spec: MakeTrialSpec, workers: int, cpus: float) -> None:  # pyright: ignore
        """`tune.with_parameters` gives what follows the trial's parameters; `cpus` are each worker's."""
        self.make_trial_spec, self.own = make_trial_spec, Worker(0, workers)
        peer = ray.remote(num_cpus=cpus)(Worker)
        self.peers = [peer.remote(rank, workers) for rank in range(1, workers)]
        if self.peers:
            address = f"{ray.util.get_node_ip_address()}:{_free_port()}"
            joined = [peer.join.remote(address) for peer in self.peers]
            self.own.join(address)
            ray.get(joined)
        self._begin(config)

    def step(self) -> dict[str, Any]:
        advanced = [peer.advance.remote() for peer in self.peers]
        metrics = self.own.advance()
        ray.get(advanced)
        trial = self.own.trial
        return {**metrics, "done": trial.validations_done == trial.num_validations}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.own.trial.save(Path(checkpoint_dir))

    def restore(self, checkpoint_path: Any) -> None:
        """Go on from a checkpoint, or begin again where it is gone.

        Tune removes a trial's older checkpoint before its own state names the newer: a driver killed in between leaves
        a state that names nothing. A trial gives the same figures every time, so only its time is lost.
        """
        if is_there(checkpoint_path.checkpoint):
            super().restore(checkpoint_path)

    def load_checkpoint(self, checkpoint: Any) -> None:
        folder = Path(checkpoint)
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        place = Path(str(self.logdir))
        loaded = [peer.load.remote(files, place / f"rank{rank}") for rank, peer in enumerate(self.peers, 1)]
        self.own.trial.load(folder)
        ray.get(loaded)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _begin(self, config: dict[str, Any]) -> None:
        plan = self.make_trial_spec(config)
        begun = [peer.begin.remote(plan) for peer in self.peers]
        self.own.begin(plan)
        ray.get(begun)


def is_there(checkpoint: tune.Checkpoint) -> bool:
    """Whether a checkpoint that Tune knows of is still stored."""
    assert checkpoint.filesystem is not None, "set by Checkpoint itself"
    return checkpoint.filesystem.get_file_info(checkpoint.path).type != pafs.FileType.NotFound


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
