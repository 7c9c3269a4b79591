"""Ways to hide attributes in a backbone's vectors, trained by one adversarial step.

Legend: `K` combinations, `m` attributes, `B` rows, `T` columns, `d` width.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrec_ray.combinations import Combination
from mtrec_ray.models.eliminators import PERSONAL_DECAY, StackedEliminators, combination_generator
from mtrec_ray.models.sequential import SequentialBackbone


class FairnessMethod(nn.Module, ABC):
    """What training and audit need of every method; the step moves its trainable parameters."""

    backbone: SequentialBackbone
    combinations: tuple[Combination, ...]

    def forward(self, history: Tensor, attribute_index: Tensor) -> Tensor:
        """(B, T) model input, (B, m) values, -1 unknown -> (K, B, T, d)."""
        return self.hide(self.backbone, history, attribute_index)

    def user_vectors(self, history: Tensor, attribute_index: Tensor) -> Tensor:
        """(B, L) histories, (B, m) values -> (K, B, d)."""
        return self.hide(self.backbone.user_vectors, history, attribute_index)

    @abstractmethod
    def hide(self, read: Callable[..., Tensor], history: Tensor, attribute_index: Tensor) -> Tensor:
        """Result of `read`, a method of the backbone, for each combination, (K, ...)."""

    def after_step(self) -> None:
        """Called after each optimizer step."""

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """What the method adds to the frozen backbone, by name."""
        return {name: value for name, value in self.named_parameters() if not name.startswith("backbone.")}

    def num_parameters(self) -> int:
        """Parameters added per combination, or per attribute of a filter."""
        return sum(parameter[0].numel() for parameter in self.own_parameters().values())


class EliminatorMethod(FairnessMethod):
    """Stacked eliminators on the frozen backbone (paper B): the optimizer alone moves them."""

    def __init__(self, backbone: SequentialBackbone, pack: StackedEliminators) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.pack = pack
        self.combinations = pack.combinations

    def hide(self, read: Callable[..., Tensor], history: Tensor, attribute_index: Tensor) -> Tensor:
        return read(history, eliminators=self.pack.for_all(attribute_index))


class ExtendedEliminatorMethod(EliminatorMethod):
    """Eliminators with our additions: a transport, and personal prompts that decay."""

    def vectors_before_transport(self, history: Tensor, attribute_index: Tensor) -> Tensor:
        """`user_vectors` without the transport."""
        return self.backbone.user_vectors(history, eliminators=self.pack.for_all(attribute_index).without_transport())

    @torch.no_grad()
    def after_step(self) -> None:
        """Decay the personal prompts, without the optimizer's scaling."""
        self.pack.personal.mul_(1 - PERSONAL_DECAY)


class FilterMethod(FairnessMethod):
    """A two-layer filter per attribute behind the frozen backbone (Li et al., SIGIR 2021).

    Their separate method, as paper B compares it: trained for the single attributes; a combination is the mean of its
    filters' outputs.
    """

    fractions: Tensor  # (K, m) of each filter in a combination's output

    def __init__(self, backbone: SequentialBackbone, attributes: Mapping[str, int]) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.attributes = tuple(attributes)
        width, num = backbone.config.width, len(attributes)
        self.inner = nn.Parameter(torch.empty(num, width, 2 * width))  # (m, d, 2d)
        self.inner_bias = nn.Parameter(torch.zeros(num, 1, 2 * width))
        self.outer = nn.Parameter(torch.empty(num, 2 * width, width))  # (m, 2d, d)
        self.outer_bias = nn.Parameter(torch.zeros(num, 1, width))
        self.for_combinations([(name,) for name in attributes])

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Xavier weights; an attribute's draws depend on its name alone."""
        for a, name in enumerate(self.attributes):
            generator = combination_generator(seed, (name,))
            for weight in (self.inner[a], self.outer[a]):
                nn.init.xavier_uniform_(weight, generator=generator)

    def for_combinations(self, combinations: Sequence[Combination]) -> None:
        """Set the combinations of the outputs' leading dimension."""
        self.combinations = tuple(combinations)
        chosen = [[float(name in chosen) for name in self.attributes] for chosen in self.combinations]
        fractions = torch.tensor(chosen, device=self.inner.device)
        self.register_buffer("fractions", fractions / fractions.sum(1, keepdim=True), persistent=False)

    def hide(self, read: Callable[..., Tensor], history: Tensor, attribute_index: Tensor) -> Tensor:
        vectors = read(history)  # (B, d) or (B, T, d)
        rows = vectors.flatten(0, -2).expand(len(self.attributes), -1, -1)  # (m, N, d)
        inner = F.leaky_relu(torch.baddbmm(self.inner_bias, rows, self.inner), 0.2)
        filtered = torch.baddbmm(self.outer_bias, inner, self.outer)  # (m, N, d)
        return torch.einsum("km,mnd->knd", self.fractions, filtered).unflatten(1, vectors.shape[:-1])


class FineTuningMethod(FairnessMethod):
    """A trained copy of the entire backbone for one combination, the bound on tuning."""

    def __init__(self, backbone: SequentialBackbone, combination: Combination) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).eval().requires_grad_(True)
        self.combinations = (combination,)

    def hide(self, read: Callable[..., Tensor], history: Tensor, attribute_index: Tensor) -> Tensor:
        return read(history)[None]

    def own_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
