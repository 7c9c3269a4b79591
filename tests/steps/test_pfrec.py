"""Paper B's step against a plain implementation of its equations: one sequence, one softmax, one instance at a time."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtrec_ray.combinations import Combination
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.models.fairness_methods import EliminatorMethod
from mtrec_ray.models.sequential import Layer, SequentialBackbone
from mtrec_ray.models.shapes import EliminatorConfig, SequentialConfig
from mtrec_ray.steps.adversary import AdversaryGame
from mtrec_ray.steps.pretraining import Positions
from tests.models.backbones import perturb

ATTRIBUTES = {"gender": 2, "age": 3}
COMBINATIONS: list[Combination] = [("gender",), ("age",), ("gender", "age")]
TITLES, LENGTH, WIDTH, HEADS, LAMBDA, LR, L2 = 12, 5, 8, 2, 1.0, 1e-4, 1e-6
SHAPES = {
    "all parts": EliminatorConfig(num_prompts=3, adapter_width=4, transport_units=0),
    "adapters alone": EliminatorConfig(num_prompts=0, personal_prompt=False, adapter_width=4, transport_units=0),
}
CROPS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, -1, -1, -1], [7, 8, -1, -1, -1, -1], [0, 2, 4, 6, 8, -1]])
VALUES = torch.tensor([[0, 2], [1, -1], [-1, 0], [1, 1]])
NEGATIVES = torch.tensor([10, 3, 11])
Parameters = dict[str, Tensor]


def make_game(shape: EliminatorConfig) -> AdversaryGame:
    """As `PFRecTrainer` makes it, in float64, moved away from special starting values."""
    config = SequentialConfig(num_titles=TITLES, history=LENGTH, width=WIDTH, num_heads=HEADS)
    backbone, generator = SequentialBackbone(config).double(), torch.Generator().manual_seed(0)
    backbone.init_weights(generator)
    perturb(backbone, generator, 0.3)
    pack = StackedEliminators(shape, ATTRIBUTES, COMBINATIONS, WIDTH).double()
    pack.init_weights(0)
    gate = pack.gate.clone()
    perturb(pack, generator, 0.3)
    pack.gate.copy_(gate)
    counts = [[5, 90], [1, 50, 40]]  # users count equally
    method = EliminatorMethod(backbone, pack)
    settings: dict[str, Any] = {"weight": LAMBDA, "generator_lr": LR, "discriminator_lr": LR}
    return AdversaryGame(method, ATTRIBUTES, counts, 0, columns=LENGTH, **settings)


@dataclass
class Paper:
    """Section 2.3 and 2.4 for one combination."""

    backbone: SequentialBackbone
    eliminator: Parameters  # of this combination
    discriminators: dict[str, Parameters]  # of each selected attribute

    def adapter(self, rows: Tensor, place: int) -> Tensor:
        """Equation 2: LayerNorm(X W_d) W_u + X."""
        own = {name: tensor[place] for name, tensor in self.eliminator.items() if tensor.dim() == 3}
        inner = rows @ own["down"]
        spread = ((inner - inner.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + 1e-5
        normed = (inner - inner.mean(-1, keepdim=True)) / spread.sqrt()
        return (normed * own["norm_scale"] + own["norm_shift"]) @ own["up"] + rows

    def user(self, history: Tensor, values: Tensor) -> Tensor:
        """Equations 1 to 3: the last row of the transformer over {p_t, p_u, v_1 ... v_s}."""
        p_u, start = [], 0
        for value, size in zip(values.tolist(), ATTRIBUTES.values(), strict=True):
            if len(self.eliminator["personal"]):
                p_u.append(self.eliminator["personal"][start + (size if value < 0 else value)])
            start += size + 1
        behaviours = self.backbone.titles.weight[history] + self.backbone.positions[: len(history)]
        hidden = torch.cat([self.eliminator["prompts"], *(row[None] for row in p_u), behaviours])
        (layer,) = self.backbone.layers
        assert isinstance(layer, Layer)
        heads, causal = [], torch.ones(len(hidden), len(hidden)).tril() == 0
        key_values = layer.key_value(hidden).chunk(HEADS, -1)
        for query, key_value in zip(layer.query(hidden).chunk(HEADS, -1), key_values, strict=True):
            key, value = key_value.chunk(2, -1)
            scores = (query @ key.t() / (WIDTH / HEADS) ** 0.5).masked_fill(causal, -torch.inf)
            heads.append(scores.exp() / scores.exp().sum(-1, keepdim=True) @ value)
        attention = layer.attention_norm(hidden + torch.cat(heads, -1))
        adapted = self.adapter(attention, 0)
        feed_forward = layer.feed_forward_norm(adapted + layer.contract(layer.expand(adapted).relu()))
        return self.adapter(feed_forward, 1)[-1]

    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        """BPR, and each discriminator's cross entropy (equation 4), means over the instances."""
        bpr, entropies = [], {name: [] for name in self.discriminators}
        titles = self.backbone.titles.weight
        for crop, values in zip(CROPS, VALUES, strict=True):
            events = crop[crop >= 0]
            for last in range(1, len(events)):
                user = self.user(events[:last], values)
                better = user @ titles[events[last]] - titles[NEGATIVES] @ user
                bpr.append(-better.sigmoid().log().mean())
                for name, own in self.discriminators.items():
                    value = values[list(ATTRIBUTES).index(name)]
                    if value >= 0:
                        inner = F.leaky_relu(user @ own["inner"] + own["inner_bias"][0], 0.2)
                        logits = (inner @ own["outer"] + own["outer_bias"][0])[: ATTRIBUTES[name]]
                        entropies[name].append(-(logits.exp()[value] / logits.exp().sum()).log())
        return torch.stack(bpr).mean(), {name: torch.stack(of).mean() for name, of in entropies.items()}


def rmsprop(weight: Tensor, gradient: Tensor) -> Tensor:
    """A first step of RMSprop with smoothing 0.99 and an L2 penalty."""
    gradient = gradient + L2 * weight
    return weight - LR * gradient / ((0.01 * gradient**2).sqrt() + 1e-8)


def leaves(parameters: Parameters) -> Parameters:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}


def close(one: Tensor | None, other: Tensor, name: str) -> None:
    assert one is not None, name
    torch.testing.assert_close(one, other.detach(), rtol=1e-10, atol=1e-10, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_gradients_and_steps_are_the_papers(shape):
    game = make_game(SHAPES[shape])
    pack, judges = game.method.get_submodule("pack"), game.discriminators
    eliminators, discriminators = leaves(dict(pack.named_parameters())), leaves(dict(judges.named_parameters()))
    history, targets = CROPS[:, :-1].masked_fill(CROPS[:, 1:] < 0, -1), CROPS[:, 1:]
    bpr, entropies = game.step(Positions(history, targets), VALUES, NEGATIVES)

    def paper(k: int, weights: Parameters) -> Paper:
        first = sum(map(len, COMBINATIONS[:k]))
        own = {name: {n: w[first + i] for n, w in weights.items()} for i, name in enumerate(COMBINATIONS[k])}
        return Paper(game.method.backbone, {name: tensor[k] for name, tensor in eliminators.items()}, own)

    of_judges = [entropy for k in range(len(COMBINATIONS)) for entropy in paper(k, discriminators).losses()[1].values()]
    close(entropies, torch.stack(of_judges), "cross entropies")
    gradients = torch.autograd.grad(torch.stack(of_judges).sum(), list(discriminators.values()))
    moved: Parameters = {}
    for gradient, (name, weight) in zip(gradients, discriminators.items(), strict=True):
        close(judges.get_parameter(name).grad, gradient, name)
        moved[name] = rmsprop(weight.detach(), gradient)
        close(judges.get_parameter(name).detach(), moved[name], name)

    losses = [paper(k, moved).losses() for k in range(len(COMBINATIONS))]
    close(bpr, torch.stack([one for one, _ in losses]), "BPR")
    loss = torch.stack([one - LAMBDA * torch.stack(list(of.values())).sum() for one, of in losses]).sum()
    trained = {name for name, parameter in pack.named_parameters() if parameter.requires_grad and parameter.numel()}
    assert trained == {"down", "up", "norm_scale", "norm_shift"} | (
        {"prompts", "personal"} if shape == "all parts" else set()
    )
    for name, gradient in zip(trained, torch.autograd.grad(loss, [eliminators[n] for n in trained]), strict=True):
        close(pack.get_parameter(name).grad, gradient, name)
        close(pack.get_parameter(name).detach(), rmsprop(eliminators[name].detach(), gradient), name)
    for name in {"gate", "transport_strength"}:
        assert torch.equal(pack.get_parameter(name), eliminators[name]), name  # neither trained nor pulled
    assert (pack.get_parameter("gate") == 0).all()
