"""Adversarial training of a pack of eliminators, or of what they are compared with, one step (paper B, 2.4).

Legend: `K` combinations, `D` pairs of a combination and a selected attribute, `B` windows, `T` columns, `S` vectors the
adversary sees, `M` negatives, `m` attributes, `A` values of the widest attribute, `d` width.

A step takes one batch of windows through all combinations:

1. the method's forward, the frozen backbone with every eliminator: a vector for each column
2. what the adversary sees: each window's last vector and a few random ones, since any prefix may be a user's history
3. the discriminators learn on those vectors, detached
4. the generator's loss, BPR - lambda * sum of cross entropies (eq. 5), reaches the method's own parameters alone
5. the average that is kept moves a little

Losses are summed over combinations and share no parameter, and both optimizers work element by element, so a pack is
its members trained one by one.

What steadies the game, on users of MovieLens-100K open to training: mean AUC of a logistic attack on gender, age and
occupation (backbone 0.559) and share of the backbone's NDCG@10, three backbones, lambda 1, no transport, error 0.005.

| way | attack | accuracy |
|---|---|---|
| as here: one step of the discriminators, two columns, class power 1/2 | 0.542 | 0.988 |
| three steps of the discriminators per generator step | 0.545 | 0.994 |
| discriminators alone for one, for three epochs | 0.544, 0.548 | 0.993, 0.992 |
| gradient reversal: both move at once, by the same discriminators | 0.544 | 0.992 |
| lambda rising over the first half | 0.548 | 0.991 |
| the adversary sees the last column alone, eight columns | 0.540, 0.542 | 0.987, 0.989 |
| class power 0, 1 | 0.544, 0.541 | 0.990, 0.990 |

All lie on one line, on which less leakage costs accuracy, so the plainest stands; averaged weights, a small rate
(eliminators.py) and the transport (models/transport.py) are what made a difference.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtrec_ray.all_reduce import AllReduce, sum_gradients
from mtrec_ray.models.discriminators import Discriminators
from mtrec_ray.models.fairness_methods import FairnessMethod
from mtrec_ray.models.running_average import RunningAverage
from mtrec_ray.models.training_state import Part
from mtrec_ray.steps.pretraining import Positions, bpr_losses


@dataclass(frozen=True)
class GameSettings:
    """Settings of the game; `EliminatorsConfig` has their defaults."""

    weight: float  # lambda of eq. (5)
    discriminator_steps: int  # per generator step
    columns: int  # vectors of each window that the adversary sees
    generator_lr: float
    discriminator_lr: float
    l2: float
    average: float  # decay of the running average that is kept

    def __post_init__(self) -> None:
        if self.discriminator_steps < 1 or self.columns < 1:
            raise ValueError(
                f"discriminator_steps {self.discriminator_steps} and columns {self.columns} must be 1 or more"
            )


class AdversaryGame:
    """A method, its discriminators, their optimizers and the average that is kept.

    Args:
        weights: (m, A) of `value_weights` over the users whose labels may be seen.
        all_reduce: sums over workers, each with its share of a global batch; None = this worker is alone.
    """

    def __init__(
        self,
        method: FairnessMethod,
        discriminators: Discriminators,
        weights: Tensor,
        config: GameSettings,
        all_reduce: AllReduce | None = None,
    ) -> None:
        self.all_reduce = all_reduce
        self.method = method
        self.discriminators = discriminators
        self.weights = weights
        self.config = config
        self.average = RunningAverage(method, config.average)
        tuned = [parameter for parameter in method.parameters() if parameter.requires_grad]
        self.generator_optimizer = torch.optim.RMSprop(tuned, lr=config.generator_lr, weight_decay=config.l2)
        self.discriminator_optimizer = torch.optim.RMSprop(
            discriminators.parameters(), lr=config.discriminator_lr, weight_decay=config.l2
        )

    def step(self, positions: Positions, attribute_index: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """One step on windows of users with values (B, m); returns global BPR (K,) and cross entropies (D,).

        Args:
            negatives: (M,) titles, the same for every position, combination and worker.

        What the adversary sees of this worker's windows is drawn from torch's own generator.
        """
        flat = self.method(positions.history, attribute_index).flatten(1, 2)  # (K, B T, d)
        columns, window = adversary_columns(positions, self.config.columns)
        seen, values = flat[:, columns], attribute_index[window]  # (K, S, d), (S, m)
        for _ in range(self.config.discriminator_steps):
            losses = self._discriminator_step(seen.detach(), values)
        bpr = mean_bpr(self.method, flat, positions, negatives, self.all_reduce)
        self._generator_step(bpr, seen, values)
        return self._total(bpr.detach()), self._total(losses)

    def _discriminator_step(self, seen: Tensor, values: Tensor) -> Tensor:
        losses = self.discriminators.losses(seen, values, self.weights, self.all_reduce)
        self.discriminator_optimizer.zero_grad(set_to_none=False)
        losses.sum().backward()
        self._sum_gradients(self.discriminator_optimizer)
        self.discriminator_optimizer.step()
        return losses.detach()

    def _generator_step(self, bpr: Tensor, seen: Tensor, values: Tensor) -> None:
        self.discriminators.requires_grad_(False)
        loss = (
            bpr.sum()
            - self.config.weight * self.discriminators.losses(seen, values, self.weights, self.all_reduce).sum()
        )
        self.generator_optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self._sum_gradients(self.generator_optimizer)
        self.generator_optimizer.step()
        self.discriminators.requires_grad_(True)
        self.method.after_step()
        self.average.update(self.method)

    def parts(self) -> list[Part]:
        """Tuned weights, their average, discriminators, with their optimizers."""
        own = self.method.own_parameters()
        average = self.average.module.own_parameters().items()
        return [
            ("method", own, self.generator_optimizer),
            ("average", {name: value for name, value in average if value is not own[name]}, None),  # shared: once
            ("discriminators", dict(self.discriminators.named_parameters()), self.discriminator_optimizer),
        ]

    def _sum_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        if self.all_reduce:
            sum_gradients([p for group in optimizer.param_groups for p in group["params"]], self.all_reduce)

    def _total(self, shares: Tensor) -> Tensor:
        return self.all_reduce(shares.clone()) if self.all_reduce else shares


def mean_bpr(
    method: FairnessMethod, vectors: Tensor, positions: Positions, negatives: Tensor, all_reduce: AllReduce | None
) -> Tensor:
    """(K, B T, d) vectors -> (K,) this worker's share of the mean BPR over all positions of the global batch."""
    targets = positions.targets.flatten()  # (B T,)
    each = bpr_losses(method.backbone, vectors, targets.clamp(min=0), negatives)  # (K, B T)
    has_target = (targets >= 0).to(each.dtype)
    count = has_target.sum()
    return each @ has_target / (all_reduce(count) if all_reduce else count).clamp(min=1)


def adversary_columns(positions: Positions, columns: int) -> tuple[Tensor, Tensor]:
    """Flat columns the adversary sees and the window each is of, (S,) both.

    Each window's last column with a target comes first, then random others; a short window gives all it has.
    """
    has_target = positions.targets >= 0  # (B, T)
    rank = torch.rand(has_target.shape, device=has_target.device).masked_fill_(~has_target, 2)
    last = has_target.shape[1] - 1 - has_target.flip(1).int().argmax(1)  # (B,)
    order = rank.scatter(1, last[:, None], -1).argsort(1)[:, :columns]  # (B, columns)
    window = torch.arange(len(order), device=order.device)[:, None].expand_as(order)
    kept = has_target.gather(1, order)
    return (order + window * has_target.shape[1])[kept], window[kept]
