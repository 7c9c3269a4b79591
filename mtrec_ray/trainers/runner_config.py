"""Settings that every training run has."""

import math

from pydantic import Field

from mtrec_ray.config import Config, Name, Seed, advanced
from mtrec_ray.files import AbsoluteUri


class RunnerConfig(Config):
    """Workers; they affect speed only, up to float error and each worker's own dropout."""

    workers: int = Field(default=1, ge=0)
    """Data-parallel workers of Ray Train. 0 trains in this process, which starts at once: for small lakes."""
    use_gpu: bool = False
    """One GPU per worker."""
    cpus_per_worker: float = advanced(1.0, gt=0)
    """Logical CPUs of a worker; one more stays free for Ray Data."""
    checkpoint_every_s: float = advanced(60.0, ge=0)
    """Seconds between checkpoints; a failure repeats at most these and ten steps."""

    @property
    def num_cpus(self) -> int:
        """Logical CPUs that the workers hold together."""
        return math.ceil(self.workers * self.cpus_per_worker)

    def check_lanes(self, lanes: int) -> None:
        """ValueError where a worker would have no lane to read."""
        if self.workers > lanes:
            raise ValueError(f"runner.workers = {self.workers} needs as many optim.lanes (there are {lanes})")


class RunConfig(Config):
    """Name, folder and seed of a training run."""

    name: Name
    """Name of the run (letters, digits and . _ + -); an unfinished run of that name resumes."""
    runs: AbsoluteUri = "runs"
    """Folder or URI that holds the runs."""
    seed: Seed = 0
    """Seed of the weights, the order of batches and all that is drawn in training."""


class SequenceOptimConfig(Config):
    """Batches and validation of a sequential model."""

    batch_crops: int = advanced(64, ge=1)
    """Mean crops of a global batch, over all workers, empty ones counted."""
    validation_users: int = advanced(10_000, ge=1)
    """Training users, drawn by hash, whose held-out validation event is scored."""
    lanes: int = advanced(8, ge=1)
    """Parallel readers of a batch, at least as many as workers; part of a run's identity."""
