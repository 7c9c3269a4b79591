"""Discriminators: one classifier per combination and attribute it selects (paper B, 2.4).

Legend: `K` combinations, `D` pairs of a combination and a selected attribute, `S` vectors the adversary sees, `m`
attributes, `A` values of the attribute with most, `d` width, `h` hidden width.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrec_ray.combinations import Combination
from mtrec_ray.models.eliminators import combination_generator
from mtrec_ray.workers import AllReduce, single_worker


class Discriminators(nn.Module):
    """Stacked two-layer classifiers: (K, S, d) -> (D, S, A) logits, -inf for missing values."""

    combination_of: Tensor  # (D,)
    attribute_of: Tensor  # (D,)
    missing: Tensor  # (D, 1, A) added to logits

    def __init__(
        self, attributes: Mapping[str, int], combinations: Sequence[Combination], *, width: int, hidden: int
    ) -> None:
        super().__init__()
        names, num_values = list(attributes), max(attributes.values())
        self.combinations = tuple(combinations)
        pairs = [(k, names.index(name)) for k, chosen in enumerate(self.combinations) for name in chosen]
        sizes = torch.tensor([attributes[names[a]] for _, a in pairs])[:, None, None]
        missing = torch.zeros(len(pairs), 1, num_values).masked_fill_(torch.arange(num_values) >= sizes, -torch.inf)
        self.register_buffer("combination_of", torch.tensor([k for k, _ in pairs]), persistent=False)
        self.register_buffer("attribute_of", torch.tensor([a for _, a in pairs]), persistent=False)
        self.register_buffer("missing", missing, persistent=False)
        self.inner = nn.Parameter(torch.empty(len(pairs), width, hidden))  # (D, d, h)
        self.inner_bias = nn.Parameter(torch.zeros(len(pairs), 1, hidden))
        self.outer = nn.Parameter(torch.empty(len(pairs), hidden, num_values))  # (D, h, A)
        self.outer_bias = nn.Parameter(torch.zeros(len(pairs), 1, num_values))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Uniform in +-1/sqrt(inputs); a pair's draws depend on its combination alone."""
        generators = [combination_generator(seed, combination) for combination in self.combinations]
        for pair, k in enumerate(self.combination_of.tolist()):
            for weight in (self.inner[pair], self.outer[pair]):
                bound = weight.shape[0] ** -0.5
                weight.uniform_(-bound, bound, generator=generators[k])

    def forward(self, vectors: Tensor) -> Tensor:
        inner = F.leaky_relu(torch.baddbmm(self.inner_bias, vectors[self.combination_of], self.inner), 0.2)  # (D, S, h)
        return torch.baddbmm(self.outer_bias, inner, self.outer) + self.missing  # (D, S, A)

    def losses(
        self, vectors: Tensor, attribute_index: Tensor, weights: Tensor, all_reduce: AllReduce = single_worker
    ) -> Tensor:
        """(D,) weighted mean cross entropy over the users of known value; 0 without any.

        (K, S, d) vectors, (S, m) values, -1 unknown, (m, A) `value_weights`. The results of several workers add up to
        the mean over the vectors of all.
        """
        labels = attribute_index.t()[self.attribute_of]  # (D, S)
        each = F.cross_entropy(self(vectors).transpose(1, 2), labels, ignore_index=-1, reduction="none")  # (D, S)
        weight = weights[self.attribute_of].gather(1, labels.clamp(min=0)) * (labels >= 0)  # (D, S)
        return (each * weight).sum(1) / all_reduce(weight.sum(1)).clamp(min=1e-9)


def value_weights(value_counts: Sequence[Sequence[int]], *, power: float) -> Tensor:
    """(m, A) weights n^-power of a value that n users have.

    Power 0 counts users equally and 1 counts values equally; one half makes rare values count without letting a few
    users steer the generator.
    """
    weights = torch.zeros(len(value_counts), max(len(counts) for counts in value_counts))
    for a, counts in enumerate(value_counts):
        seen = torch.tensor(counts, dtype=torch.float32)
        weights[a, : len(counts)] = torch.where(seen > 0, seen.clamp(min=1) ** -power, 0)
    return weights
