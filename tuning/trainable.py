"""Ray Tune drives a trial in a process that the next one reuses, with peers as workers.

Peers are actors in the trial's own placement group: Tune reserves all resources of a trial at once, a stopped or dead
trial takes its peers with it, and no trial waits for a worker group to start. A Ray Train run nested in every trial
costs about twenty seconds each, and one that ASHA stopped kept its workers, so that the next trial waited for ever.
"""

import socket
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray
import torch
from ray import tune

from mtrec_ray.trainers.workers import Workers
from mtrec_ray.tuning.data import TrialCache
from mtrec_ray.tuning.specs import TrialSpecs
from mtrec_ray.tuning.trial import Trial, TrialSpec, make_trial


class Worker:
    """One rank of a trial; all ranks go through the same calls."""

    def __init__(self, workers: Workers) -> None:
        self.workers, self.cache = workers, TrialCache()
        self.trial: Trial  # set by `start`

    def join(self, address: str) -> None:
        """Connect to the other ranks; returns when all are connected."""
        rank, size = self.workers.rank, self.workers.size
        torch.distributed.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=size)

    def start(self, spec: TrialSpec) -> None:
        """Replace the trial by the next one."""
        self.trial = make_trial(spec, self.cache, self.workers)

    def advance(self) -> dict[str, float]:
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

    def setup(self, config: dict[str, Any], *, specs: TrialSpecs, workers: int, cpus: float) -> None:  # pyright: ignore
        """`tune.with_parameters` adds `specs`, `workers` and the `cpus` of each."""
        self.specs, self.own = specs, Worker(Workers(0, workers))
        peer = ray.remote(num_cpus=cpus)(Worker)
        self.peers = [peer.remote(Workers(rank, workers)) for rank in range(1, workers)]
        if self.peers:
            self._on_all_ranks("join", f"{ray.util.get_node_ip_address()}:{_free_port()}")
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._on_all_ranks("start", self.specs.spec(new_config))
        return True

    def step(self) -> dict[str, Any]:
        metrics, trial = self._on_all_ranks("advance"), self.own.trial
        return {**metrics, "done": trial.validations_done == trial.num_validations}

    def _on_all_ranks(self, method: str, *arguments: Any) -> Any:
        """Call a method of every Worker at the same time; returns the result of rank 0."""
        references = [getattr(peer, method).remote(*arguments) for peer in self.peers]
        result = getattr(self.own, method)(*arguments)
        ray.get(references)
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.own.trial.save(Path(checkpoint_dir))

    def restore(self, checkpoint_path: Any) -> None:
        """Resume from a checkpoint, or start again where it is missing.

        Tune removes a trial's older checkpoint before its own state names the newer one, so a driver killed in between
        leaves a state that names none. A trial gives the same figures every time: only its time is lost.
        """
        if is_stored(checkpoint_path.checkpoint):
            super().restore(checkpoint_path)

    def load_checkpoint(self, checkpoint: Any) -> None:
        files = {path.name: path.read_bytes() for path in Path(checkpoint).iterdir() if path.is_file()}
        self._on_all_ranks("load", files, Path(str(self.logdir)))

    def cleanup(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def is_stored(checkpoint: tune.Checkpoint) -> bool:
    """Whether the files of a checkpoint that Tune knows of exist."""
    assert checkpoint.filesystem is not None, "set by Checkpoint itself"
    return checkpoint.filesystem.get_file_info(checkpoint.path).type != pafs.FileType.NotFound


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
