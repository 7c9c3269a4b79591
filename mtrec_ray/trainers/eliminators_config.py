"""Settings of `mtrec train eliminators`."""

from collections import Counter
from itertools import chain, combinations
from typing import Literal

from pydantic import Field, model_validator

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.config import Config, Seed
from mtrec_ray.errors import UserError
from mtrec_ray.trainers.runner_config import RunnerConfig, check_lanes

MAX_ATTRIBUTES_FOR_ALL = 12


class EliminatorShapeConfig(Config):
    """Parts of an eliminator (paper B, 2.3; the map is ours); a part left out is an ablation."""

    num_prompts: int = Field(default=10, ge=0)
    """Prompt vectors in front of the history; 0 leaves them out."""
    personal_prompt: bool = True
    """The user's attribute values as further prompts."""
    adapter_width: int = Field(default=8, ge=0)
    """Width of the adapters; 0 leaves them out."""
    transport_units: int = Field(default=16, ge=0)
    """Units of the map that moves each value's users to where the others are; 0 leaves it out."""

    @model_validator(mode="after")
    def _has_a_part(self) -> "EliminatorShapeConfig":
        if not (self.num_prompts or self.personal_prompt or self.adapter_width):
            raise ValueError("an eliminator needs prompts, a personal prompt or adapters; all three are left out")
        return self


class AdversaryConfig(Config):
    """The game of eliminator and discriminators (paper B, 2.4, with lambda 1 and rates of 1e-4; a running mean, several
    columns and weights of values are ours)."""

    weight: float = Field(default=0.1, ge=0)
    """Lambda of eq. (5). The transport hides most: on MovieLens-100K 1 hid no more and cost 2% of NDCG@10 more; on a
    service of 12,000 users, no bar held, three attributes together were hidden alike by 0.03 and 0.3, for 5 and 13%."""
    discriminator_steps: int = Field(default=1, ge=1)
    """Discriminator steps per generator step."""
    discriminator_width: int = Field(default=64, ge=1)
    """Hidden width of a discriminator."""
    columns: int = Field(default=2, ge=1)
    """Vectors of each window that the adversary sees: the last, then random ones, any prefix being a user's history."""
    class_power: float = Field(default=0.5, ge=0, le=1)
    """Weight of a value that n users have is n^-power: 0 counts users alike, 1 values alike."""
    generator_lr: float = Field(default=2e-4, gt=0)
    """RMSprop's rate for the eliminator; at 1e-3 it writes the personal prompt's label into the vector."""
    discriminator_lr: float = Field(default=1e-3, gt=0)
    """RMSprop's rate for the discriminators."""
    l2: float = Field(default=1e-6, ge=0)
    """L2 penalty of both (paper B)."""
    averaging: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the running mean of the eliminator's weights, which is what is validated and kept."""


class TransportConfig(Config):
    """How the maps behind the last layer are fitted (ours: mtrec_ray/models/transport.py)."""

    weight: float = Field(default=100.0, ge=0)
    """Of what is left of an attribute, against the change of scores."""
    passes: int = Field(default=60, ge=1)
    """Over the vectors before the first training step; 20 more for each quarter of the users, which say how much of the
    others' map to use. Attackers of a strongly planted gender read 0.61 after 30, 0.57 after 60, 0.59 after 120."""
    later_passes: int = Field(default=12, ge=1)
    """Over the vectors at each look at the validation event."""


class EliminatorOptimConfig(Config):
    """Batches (paper B: of 256), length and choice of an eliminator's weights (ours)."""

    batch_crops: int = Field(default=64, ge=1)
    """Windows of a global batch on average, over all workers, those counted that an epoch's cut leaves empty: a half
    where histories are much shorter than the backbone's model.history, few where they are long."""
    num_negatives: int = Field(default=16, ge=1)
    """Titles drawn a batch, negatives of each of its positions."""
    mask_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of a window's events that a bert4rec backbone has to guess."""
    epochs: int = Field(default=12, ge=1)
    """Passes over the positions of the users whose attribute values may be seen; longer hid no more."""
    evaluate_every: int = Field(default=2, ge=1)
    """Epochs between two looks at the validation event."""
    min_ndcg_ratio: float = Field(default=0.985, gt=0, le=1)
    """Share of the backbone's validation NDCG@10 that is kept: as much of a map is used as keeps it by itself, and the
    last weights that keep it are taken."""
    leakage_budget: float = Field(default=0.3, ge=0, le=1)
    """Hiding an attribute may cost leakage_budget * (2 AUC - 1)^2 of NDCG@10 where min_ndcg_ratio allows less; AUC:
    of a linear probe of the backbone. What tastes show plainly costs more to hide."""
    validation_users: int = Field(default=10_000, ge=1)
    """Users, drawn by hash, whose validation event is looked at."""
    lanes: int = Field(default=8, ge=1)
    """Parallel readers of a batch: fixes which windows share one, whatever the number of workers (at most so many)."""


class EliminatorsConfig(Config):
    """Eliminators of some or all combinations of a backbone's attributes."""

    backbone: str
    """Folder or URI of the backbone's run."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Name of the run (letters, digits and . _ + -); the same name goes on where it was stopped."""
    runs: str = "runs"
    """Folder or URI that holds the runs."""
    seed: Seed = 0
    """Seed of the weights, of the order of windows, of negatives and of what the adversary sees."""
    combinations: str = "all"
    """`all`, or combinations by comma, their attributes by plus: gender+age,occupation."""
    method: Literal["eliminator", "filter", "fine_tuning"] = "eliminator"
    """`filter` (Li et al. 2021) and `fine_tuning` are what an audit compares eliminators with."""
    pack_size: int = Field(default=8, ge=1)
    """Combinations trained in one job, in one batched forward: start-up costs more than small models."""
    jobs_at_once: int | None = Field(default=None, ge=1)
    """Jobs side by side; null: as many as the cluster's CPUs (or GPUs) hold."""
    retries: int = Field(default=1, ge=0)
    """Times a failed job is started again before the others end without it."""
    shape: EliminatorShapeConfig = EliminatorShapeConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    transport: TransportConfig = TransportConfig()
    optim: EliminatorOptimConfig = EliminatorOptimConfig()
    runner: RunnerConfig = RunnerConfig()

    @model_validator(mode="after")
    def _lanes(self) -> "EliminatorsConfig":
        check_lanes(self.runner, self.optim.lanes)
        return self

    @model_validator(mode="after")
    def _read(self) -> "EliminatorsConfig":
        for section, usual in (("shape", EliminatorShapeConfig()), ("transport", TransportConfig())):
            if self.method != "eliminator" and getattr(self, section) != usual:
                raise ValueError(f"{section} has no effect with method = {self.method}: drop it")
        return self


def parse_combinations(text: str, attributes: dict[str, list[str]]) -> list[Combination]:
    """The named combinations, each with its attributes in the lake's order.

    Raises:
        UserError: an attribute that is not there or has one value only, a combination named twice, or too many.
    """
    if not attributes:
        raise UserError("the lake has no sensitive attribute: there is nothing to eliminate")
    names = list(attributes)
    if text.strip() == "all":
        if len(names) > MAX_ATTRIBUTES_FOR_ALL:
            raise UserError(
                f"combinations=all with {len(names)} attributes means {2 ** len(names) - 1:,} eliminators: "
                "name those you need, as in combinations=gender+age,gender"
            )
        chosen = list(chain.from_iterable(combinations(names, size) for size in range(1, len(names) + 1)))
    else:
        chosen = [_combination(part.strip(), names) for part in text.split(",")]
    repeated = [combination for combination, times in Counter(chosen).items() if times > 1]
    if repeated:
        raise UserError(f"combination {combination_name(min(repeated))} is named twice")
    single = sorted({name for combination in chosen for name in combination if len(attributes[name]) < 2})
    if single:
        raise UserError(
            f"attribute {single[0]!r} has one value only ({attributes[single[0]]}), there is nothing to hide in it: "
            "leave it out of combinations"
        )
    return chosen


def _combination(text: str, names: list[str]) -> Combination:
    parts = [part.strip() for part in text.split("+")]
    if "" in parts:
        raise UserError(f"combinations: {text!r} has an empty part; write them as gender+age,gender")
    unknown = [part for part in parts if part not in names]
    if unknown:
        raise UserError(f"combinations: the lake has no attribute {unknown[0]!r}; it has {', '.join(names)}")
    if len(set(parts)) < len(parts):
        raise UserError(f"combinations: {text!r} names an attribute twice")
    return tuple(name for name in names if name in parts)
