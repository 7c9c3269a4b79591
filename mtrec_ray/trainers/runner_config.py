"""Workers of a run: the same settings for every model."""

import math

from pydantic import Field

from mtrec_ray.config import Config, advanced


class RunnerConfig(Config):
    """Workers; they affect speed only, up to float error and each worker's own dropout."""

    workers: int = Field(default=1, ge=1)
    """Data-parallel workers."""
    use_gpu: bool = False
    """One GPU per worker."""
    cpus_per_worker: float = advanced(1.0, gt=0)
    """Logical CPUs of a worker; one more stays free for Ray Data."""
    max_failures: int = advanced(3, ge=0)
    """Restarts from the last checkpoint before the run fails."""
    checkpoint_every_s: float = advanced(60.0, ge=0)
    """Seconds between checkpoints; a failure repeats at most these and ten steps."""

    @property
    def num_cpus(self) -> int:
        """Logical CPUs that the workers hold together."""
        return math.ceil(self.workers * self.cpus_per_worker)


def check_lanes(runner: RunnerConfig, lanes: int) -> None:
    """ValueError where a worker would have no lane to read."""
    if runner.workers > lanes:
        raise ValueError(f"runner.workers = {runner.workers} needs as many optim.lanes (there are {lanes})")
