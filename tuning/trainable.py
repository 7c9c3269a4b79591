"""Ray Tune drives a trial in a process that the next one reuses, with peers as workers.

Peers are actors in the trial's own placement group, so that a stopped or dead trial takes them with it. (A Ray Train
run nested in every trial costs about twenty seconds each.)
"""

import socket
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray
import torch
from ray import tune

from mtrec_ray.config import Config
from mtrec_ray.trainers.trainer import Diverged
from mtrec_ray.tuning.data import Figures, TrialCache
from mtrec_ray.tuning.space import TrialSpecs
from mtrec_ray.workers import Workers


class TrialRank:
    """One rank of a trial; all ranks go through the same calls."""

    def __init__(self, specs: TrialSpecs, workers: Workers) -> None:
        self.specs, self.workers, self.cache = specs, workers, TrialCache()

    def join(self, address: str) -> None:
        """Connect to the other ranks; returns when all are connected."""
        rank, size = self.workers.rank, self.workers.size
        torch.distributed.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=size)

    def start(self, config: Config) -> None:
        self.trial = self.specs.make(config, self.cache, self.workers)

    def advance(self) -> Figures:
        """Train to the next validation; its figures are the same on every rank."""
        return self.trial.advance()

    def load(self, files: dict[str, bytes], folder: Path) -> None:
        """Resume from a checkpoint's files, copied below `folder` from any machine."""
        own = folder / f"rank{self.workers.rank}"
        own.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (own / name).write_bytes(content)
        self.trial.load(own)


class TrialProcess(tune.Trainable):
    """Rank 0 of one trial after another."""

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, config: dict[str, Any], *, specs: TrialSpecs, goals: tuple[str, ...], workers: int, cpus: float
    ) -> None:
        """`tune.with_parameters` adds `specs`, `goals`, `workers` and the `cpus` of each."""
        self.specs, self.goals, self.own = specs, goals, TrialRank(specs, Workers(0, workers))
        peer = ray.remote(num_cpus=cpus)(TrialRank)
        self.peers = [peer.remote(specs, Workers(rank, workers)) for rank in range(1, workers)]
        if self.peers:
            with socket.socket() as probe:
                probe.bind(("", 0))
                port = probe.getsockname()[1]
            self._on_all_ranks("join", f"{ray.util.get_node_ip_address()}:{port}")
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._on_all_ranks("start", self.specs.config(new_config))
        return True

    def step(self) -> dict[str, Any]:
        try:
            figures, trial = self._on_all_ranks("advance"), self.own.trial
        except Diverged as error:  # on every rank; another attempt would diverge too
            return {
                "figures": {goal: {"value": float("nan")} for goal in self.goals},
                "failed": str(error),
                "done": True,
            }
        return {"figures": figures, "done": trial.validations_done == trial.num_validations}

    def _on_all_ranks(self, method: str, *arguments: Any) -> Any:
        """Call a method of every TrialRank at the same time; returns the result of rank 0."""
        references = [getattr(peer, method).remote(*arguments) for peer in self.peers]
        result = getattr(self.own, method)(*arguments)
        ray.get(references)
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.own.trial.save(Path(checkpoint_dir))

    def restore(self, checkpoint_path: Any) -> None:
        """Resume, or start again: a killed driver may name a checkpoint that was replaced."""
        checkpoint = checkpoint_path.checkpoint
        if checkpoint.filesystem.get_file_info(checkpoint.path).type != pafs.FileType.NotFound:
            super().restore(checkpoint_path)

    def load_checkpoint(self, checkpoint: Any) -> None:
        files = {path.name: path.read_bytes() for path in Path(checkpoint).iterdir() if path.is_file()}
        self._on_all_ranks("load", files, Path(str(self.logdir)))

    def cleanup(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
