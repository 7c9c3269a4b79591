"""One step of adversarial training of a fairness method (paper B, 2.4).

Legend: `K` combinations, `D` pairs of a combination and a selected attribute, `B` crops, `T` columns, `S` vectors the
adversary sees, `M` negatives, `m` attributes, `A` values of the attribute with most, `d` width.

1. the method's forward, the frozen backbone with every eliminator: a vector for each column
2. what the adversary sees: each crop's last vector and a few random ones, since any prefix may be a user's history
3. the discriminators learn on those vectors, detached
4. the generator's loss, BPR - lambda * sum of cross entropies (eq. 5), reaches the method's own parameters alone
5. the average of the weights moves, where there is one

Combinations have no parameter in common and both optimizers work element by element: each is trained as if alone.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from mtrec_ray.models.discriminators import Discriminators, value_weights
from mtrec_ray.models.fairness_methods import FairnessMethod
from mtrec_ray.models.training_state import Part, averaged
from mtrec_ray.steps.pretraining import Positions, bpr_losses
from mtrec_ray.workers import AllReduce, single_worker, sum_gradients

COLUMNS = 2  # vectors of each crop that the adversary sees: attack AUC on MovieLens-100K 0.542; 1 or 8: 0.540, 0.542
DISCRIMINATOR_WIDTH, DISCRIMINATOR_LR = 64, 1e-3  # hidden width, and RMSprop's learning rate of all discriminators
L2 = 1e-6  # L2 penalty of both optimizers (paper B)


class AdversaryGame:
    """A method, its discriminators, their optimizers and the averaged weights.

    `attributes` holds the number of values of each attribute, `value_counts` the users of the train split with each
    value. `weight` is lambda of eq. (5). Ours are `class_power`, that of `value_weights`, and `averaging`, the decay of
    the averaged weights; at 0, as in paper B, users count equally and there is no average.
    """

    def __init__(
        self,
        method: FairnessMethod,
        attributes: Mapping[str, int],
        value_counts: Sequence[Sequence[int]],
        seed: int,
        all_reduce: AllReduce = single_worker,
        *,
        weight: float,
        generator_lr: float,
        averaging: float = 0.0,
        class_power: float = 0.0,
        discriminator_lr: float = DISCRIMINATOR_LR,
        columns: int = COLUMNS,
    ) -> None:
        self.method, self.weight, self.columns, self.all_reduce = method, weight, columns, all_reduce
        like, width = method.backbone.positions, method.backbone.config.width
        self.discriminators = Discriminators(attributes, method.combinations, width=width, hidden=DISCRIMINATOR_WIDTH)
        self.discriminators.init_weights(seed)
        self.discriminators.to(like)
        self.value_weights = value_weights(value_counts, power=class_power).to(like)  # (m, A)
        self.average = averaged(method, averaging) if averaging else None
        tuned = [parameter for parameter in method.parameters() if parameter.requires_grad]
        rmsprop = partial(torch.optim.RMSprop, weight_decay=L2)
        self.generator_optimizer = rmsprop(tuned, lr=generator_lr)
        self.discriminator_optimizer = rmsprop(self.discriminators.parameters(), lr=discriminator_lr)

    def step(
        self, positions: Positions, attribute_index: Tensor, negatives: Tensor, *, move_generator: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Train on this worker's crops; returns global BPR (K,) and cross entropies (D,).

        (B, m) values, -1 unknown, (M,) negatives, the same for every position, combination and worker. Torch's global
        generator draws the columns that the adversary sees. Without `move_generator` the discriminators alone learn.
        """
        with torch.set_grad_enabled(move_generator):
            vectors = self.method(positions.history, attribute_index).flatten(1, 2)  # (K, B T, d)
        columns, crop = adversary_columns(positions, self.columns)
        seen, values = vectors[:, columns], attribute_index[crop]  # (K, S, d), (S, m)
        entropies = self._entropies(seen.detach(), values)
        self._descend(self.discriminator_optimizer, entropies.sum())
        targets = positions.targets.flatten()
        each = bpr_losses(self.method.backbone, vectors, targets.clamp(min=0), negatives)  # (K, B T)
        has_target = (targets >= 0).to(each.dtype)
        bpr = each @ has_target / self.all_reduce(has_target.sum()).clamp(min=1)  # (K,); the workers' sum is the mean
        if move_generator:
            self.discriminators.requires_grad_(False)
            self._descend(self.generator_optimizer, bpr.sum() - self.weight * self._entropies(seen, values).sum())
            self.discriminators.requires_grad_(True)
            self.method.after_step()
            if self.average is not None:
                self.average.update_parameters(self.method)
        return self.all_reduce(bpr.detach().clone()), self.all_reduce(entropies.detach().clone())

    @property
    def averaged(self) -> FairnessMethod:
        """The method with its averaged weights, or as it is without an average."""
        return self.method if self.average is None else cast("FairnessMethod", self.average.module)

    def parts(self) -> list[Part]:
        """Tuned weights, their average, discriminators, with their optimizers."""
        own = self.method.own_parameters()
        parts: list[Part] = [
            ("method", own, self.generator_optimizer),
            ("discriminators", dict(self.discriminators.named_parameters()), self.discriminator_optimizer),
        ]
        if self.average is not None:
            averages = self.averaged.own_parameters().items()
            separate = {name: value for name, value in averages if value is not own[name]}
            parts.append(("average", {"n_averaged": self.average.n_averaged} | separate, None))
        return parts

    def _entropies(self, seen: Tensor, values: Tensor) -> Tensor:
        return self.discriminators.losses(seen, values, self.value_weights, self.all_reduce)

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        sum_gradients(optimizer.param_groups[0]["params"], self.all_reduce, loss.detach())
        optimizer.step()


def adversary_columns(positions: Positions, columns: int) -> tuple[Tensor, Tensor]:
    """Flat columns the adversary sees and the crop of each, (S,) both.

    Each crop's last column with a target comes first, then random others; a short crop gives all its columns.
    """
    has_target = positions.targets >= 0  # (B, T)
    rank = torch.rand(has_target.shape, device=has_target.device).masked_fill_(~has_target, 2)
    last = has_target.shape[1] - 1 - has_target.flip(1).int().argmax(1)  # (B,)
    order = rank.scatter(1, last[:, None], -1).argsort(1)[:, :columns]  # (B, columns)
    crop = torch.arange(len(order), device=order.device)[:, None].expand_as(order)
    chosen = has_target.gather(1, order)
    return (order + crop * has_target.shape[1])[chosen], crop[chosen]
