"""Workers of a run, the same settings for every kind of run."""

import math

from pydantic import Field

from mtrec_ray.config import Config


class RunnerConfig(Config):
    """Where and how the run is carried out; changes nothing but speed, up to float error, and in the sequential models
    up to what every worker draws for itself: dropout, BERT4Rec's masks, which columns the adversary sees."""

    workers: int = Field(default=1, ge=1)
    """Data-parallel workers."""
    use_gpu: bool = False
    """One GPU per worker."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """Logical CPUs a worker holds; one more must stay free for Ray Data."""
    max_failures: int = Field(default=3, ge=0)
    """Restarts from the last checkpoint before the run gives up."""
    checkpoint_every_s: float = Field(default=60.0, ge=0)
    """Seconds between checkpoints, by a clock that is read every ten steps. A failure costs at most this and ten steps,
    and what was under way of a fit of eliminators' maps or a look at the validation event."""

    @property
    def num_cpus(self) -> int:
        """Logical CPUs that the workers hold together."""
        return math.ceil(self.workers * self.cpus_per_worker)


def check_lanes(runner: RunnerConfig, lanes: int) -> None:
    """ValueError where workers would have no lane to read."""
    if runner.workers > lanes:
        raise ValueError(f"runner.workers = {runner.workers} needs as many optim.lanes (there are {lanes})")
