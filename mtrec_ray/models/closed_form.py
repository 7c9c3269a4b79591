"""Closed-form eliminators: a map for each attribute value, composed per combination.

Legend: `K` combinations, `m` attributes, `A` values and unknowns of all attributes, `B` users, `d` width.

m attributes need m sets of maps (`value_maps`) and no training for each of the 2^m combinations: the maps of the
selected attributes are applied in the lake's order. A backbone's vectors are outputs of a layer norm, so without its
gain and shift they lie on a sphere. The maps act there, and the layer norm is applied once more: a vector that left the
sphere would show its value to any network (MovieLens-1M, gender: boosting's AUC 0.645 without, 0.566 with it).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrec_ray.combinations import Combination
from mtrec_ray.models.fairness_methods import FairnessMethod
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.value_maps import fit_value_maps


class ClosedFormMaps(nn.Module):
    """The maps of all attributes; `attributes` holds the number of values of each."""

    value_starts: Tensor  # (m,) first row of each attribute
    unknown_rows: Tensor  # (m,) the unknown value's row, counted from there

    def __init__(self, attributes: Mapping[str, int], combinations: Sequence[Combination], width: int) -> None:
        super().__init__()
        self.attributes, self.combinations = dict(attributes), tuple(combinations)
        counts = torch.tensor([values + 1 for values in self.attributes.values()])  # + unknown
        rows = int(counts.sum())
        self.weight = nn.Parameter(torch.eye(width).repeat(rows, 1, 1), requires_grad=False)  # (A, d, d)
        self.bias = nn.Parameter(torch.zeros(rows, width), requires_grad=False)  # (A, d)
        self.register_buffer("value_starts", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("unknown_rows", counts - 1, persistent=False)

    def with_identity(self) -> "ClosedFormMaps":
        """The same maps with one more combination, of no attribute: the backbone."""
        wider = ClosedFormMaps(self.attributes, [*self.combinations, ()], self.bias.shape[1])
        wider.load_state_dict(self.state_dict())
        return wider.eval()

    def compose(self, combination: Combination, attribute_index: Tensor) -> tuple[Tensor, Tensor]:
        """(B, m) values, -1 unknown -> (B, d, d), (B, d) of all selected attributes."""
        rows = self.value_starts + torch.where(attribute_index < 0, self.unknown_rows, attribute_index)  # (B, m)
        width = self.bias.shape[1]
        weight = torch.eye(width, device=rows.device).expand(len(rows), -1, -1)
        bias = self.bias.new_zeros(len(rows), width)
        for a, name in enumerate(self.attributes):
            if name in combination:
                own = self.weight[rows[:, a]]
                bias = torch.baddbmm(self.bias[rows[:, a]][:, :, None], own, bias[:, :, None])[..., 0]
                weight = own @ weight
        return weight, bias

    @torch.no_grad()
    def fit(self, points: Tensor, attribute_index: Tensor, user: Tensor, fold: Tensor) -> dict[str, dict[str, float]]:
        """Fit the maps of all selected attributes; figures of each.

        (S, d) `sphere_points` of several vectors a user, (S, m) values, -1 unknown, (S,) users, (S,) folds.
        """
        figures, selected = {}, {name for combination in self.combinations for name in combination}
        for a, (name, num_values) in enumerate(self.attributes.items()):
            if name in selected:
                found = fit_value_maps(points, attribute_index[:, a], user, fold, num_values)
                start = int(self.value_starts[a])
                self.weight[start : start + num_values + 1] = found.weight.to(self.weight)
                self.bias[start : start + num_values + 1] = found.bias.to(self.bias)
                constants = {"mean_noise": found.mean_noise, "covariance_users": found.covariance_users}
                figures[name] = constants | {"erased": float(found.erased)}
        return figures


class ClosedFormMethod(FairnessMethod):
    """Closed-form maps behind the frozen backbone."""

    def __init__(self, backbone: SequentialBackbone, maps: ClosedFormMaps) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.pack = maps
        self.combinations = maps.combinations

    def hide(self, read: Callable[..., Tensor], history: Tensor, attribute_index: Tensor) -> Tensor:
        vectors = read(history)  # (B, d) or (B, T, d)
        rows = vectors if vectors.dim() == 3 else vectors[:, None]
        composed = [self.pack.compose(combination, attribute_index) for combination in self.combinations]
        moved = torch.stack([move(rows, *one, self.backbone) for one in composed])  # (K, B, T, d)
        return moved if vectors.dim() == 3 else moved[:, :, 0]

    def num_parameters(self) -> int:
        """Parameters of all combinations together: they share the maps."""
        return sum(parameter.numel() for parameter in self.own_parameters().values())


def sphere_points(vectors: Tensor, backbone: SequentialBackbone) -> Tensor:
    """(..., d) user vectors before the gain and shift of the last layer norm."""
    norm = backbone.layers[-1].feed_forward_norm
    gain = torch.where(norm.weight.abs() < 1e-6, 1e-6, norm.weight)  # a gain of zero tells nothing of its coordinate
    return (vectors - norm.bias) / gain


def move(vectors: Tensor, weight: Tensor, bias: Tensor, backbone: SequentialBackbone) -> Tensor:
    """(B, T, d) vectors, (B, d, d), (B, d) -> (B, T, d) on the sphere again."""
    norm = backbone.layers[-1].feed_forward_norm
    points = torch.baddbmm(bias[:, None], sphere_points(vectors, backbone), weight.mT)
    return F.layer_norm(points, points.shape[-1:], norm.weight, norm.bias, norm.eps)
