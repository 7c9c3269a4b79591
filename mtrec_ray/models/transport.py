"""Transport: a map for each attribute value that makes users of all values alike.

Legend: `K` combinations, `m` attributes, `V` vectors, several a user, `S` vectors of a batch, `D` pairs of a
combination and an attribute it selects, `A` values and unknowns of all attributes, `h` units, `d` width.

An eliminator knows the values its user has, so it need not remove a direction for everybody. Per combination

    x' = x - strength * (relu(x W + b) * g_y) U,     g_y = sum of a row of g for each selected value, zero if unknown.

The map minimises, on frozen vectors of users of the train split, distortion + weight * sum over selected attributes of

* dependence: sum over values v of P(v) * MMD^2(users of v, all) under Gaussian kernels of four widths (Gretton et al.
  2012), unbiased over users: pairs of vectors of one user do not count
* distortion: the change of scores over the spread of scores, mean square over titles

A map that overfits writes the values into other users' vectors. So its units read blurred vectors while they are
fitted, and the strength is the one that held-out folds of users confirm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 4
BATCH = 256
MIN_BATCHES, MAX_BATCHES = 5, 100  # of one pass: few users need more passes, many fewer
LEARNING_RATE = 1e-2
BLUR = 0.5  # of what the units read while they are fitted, in standard deviations of the vectors
NUM_CHECKS = 16  # batches of a held-out fold that a strength is validated on
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
WIDTHS = (1, 2, 4, 8)  # kernels exp(-width * squared distance / (2 * its mean)), each the square of the one before
RIDGE = 0.3  # of the distortion, times the titles' mean variance: directions that score no title have a cost too


@dataclass(frozen=True)
class Transport:
    """Maps of K combinations."""

    inner: Tensor  # (K, d, h) W
    bias: Tensor  # (K, 1, h) b
    gain: Tensor  # (K, A, h) g
    outer: Tensor  # (K, h, d) U
    strength: Tensor  # (K, 1, 1)

    def __call__(self, vectors: Tensor, rows: Tensor, blur: Tensor | float = 0.0) -> Tensor:
        """(K, S, d) vectors, (S, m) their rows of `gain` -> (K, S, d); units see vectors + `blur`."""
        units = torch.baddbmm(self.bias, vectors + blur, self.inner).relu() * self.gain[:, rows].sum(2)  # (K, S, h)
        return vectors - self.strength * (units @ self.outer)


@dataclass(frozen=True)
class Hidden:
    """What to hide, in which vectors."""

    vectors: Tensor  # (K, V, d)
    values: Tensor  # (V, m) -1 unknown
    rows: Tensor  # (V, m) their rows of `gain`
    user: Tensor  # (V,) int64, equal for vectors of one user
    selected: Tensor  # (K, m) bool
    movable: Tensor  # (K, A, 1) 1 for the values of selected attributes, 0 for the others and for unknowns
    num_values: Sequence[int]
    titles: Tensor  # (N, d)
    weight: float  # of dependence against distortion

    def take(self, rows: Tensor) -> "Hidden":
        """Some of the vectors, (V',) indices."""
        per_vector = {name: getattr(self, name)[rows] for name in ("values", "rows", "user")}
        return replace(self, vectors=self.vectors[:, rows], **per_vector)


def fit_transport_maps(
    hidden: Hidden, start: Transport, fold: Tensor, steps: int, seed: int, *, find_strength: bool
) -> Transport:
    """Train the maps of all combinations from `start` on, each as if it were alone.

    Args:
        fold: (V,) in 0..FOLDS - 1, the same for all vectors of a user.
        steps: of Adam, the rate falling to zero; a third of them for each fold.
        find_strength: find the strength by cross-validation; else keep `start`'s.
    """
    mean = hidden.vectors.mean(1, keepdim=True)  # (K, 1, d)
    scale = (hidden.vectors - mean).square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-6)  # (K, 1, 1)
    hidden = replace(hidden, vectors=(hidden.vectors - mean) / scale)
    start = replace(start, inner=start.inner * scale, bias=start.bias + mean @ start.inner, outer=start.outer / scale)
    strength = _best_strength(hidden, start, fold, -(-steps // 3), seed) if find_strength else start.strength
    found = _descend(hidden, start, steps, seed)
    inner = found.inner / scale
    return Transport(inner, found.bias - mean @ inner, found.gain, found.outer * scale, strength)


def num_steps(passes: int, num_vectors: int) -> int:
    """Steps of some passes over the vectors; too few steps leave networks much to read."""
    return passes * min(max(num_vectors // BATCH, MIN_BATCHES), MAX_BATCHES)


def _descend(hidden: Hidden, start: Transport, steps: int, seed: int) -> Transport:
    """`start` after `steps` of Adam, at full strength."""
    objective, generator = _Objective(hidden), torch.Generator().manual_seed(seed)
    tensors = {name: getattr(start, name).clone().requires_grad_() for name in ("inner", "bias", "gain", "outer")}
    transport = Transport(**tensors, strength=torch.ones_like(start.strength))
    transport.gain.register_hook(lambda gradient: gradient * hidden.movable)
    optimizer = torch.optim.Adam(tensors.values(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        batch = objective.draw(generator)
        blur = BLUR * torch.randn(batch.vectors.shape[1:], generator=generator).to(batch.vectors.device)  # (S, d)
        optimizer.zero_grad()
        objective(batch, transport(batch.vectors, batch.rows, blur)).sum().backward()
        optimizer.step()
        schedule.step()
    return replace(transport, **{name: tensor.detach() for name, tensor in tensors.items()})


@torch.no_grad()
def _best_strength(hidden: Hidden, start: Transport, fold: Tensor, steps: int, seed: int) -> Tensor:
    """(K, 1, 1) the strength with the lowest objective on users of the held-out folds."""
    total = torch.zeros(len(STRENGTHS), len(hidden.vectors), device=hidden.vectors.device)  # (strengths, K)
    for held_out in range(FOLDS):
        inside, outside = (fold == held_out).nonzero()[:, 0], (fold != held_out).nonzero()[:, 0]
        if not len(inside) or not len(outside):
            continue
        with torch.enable_grad():
            found = _descend(hidden.take(outside), start, steps, seed)
        objective, generator = _Objective(hidden, inside), torch.Generator().manual_seed(seed)
        for _ in range(NUM_CHECKS):
            batch = objective.draw(generator)
            moved = found(batch.vectors, batch.rows)
            for number, strength in enumerate(STRENGTHS):
                total[number] += objective(batch, torch.lerp(batch.vectors, moved, strength))
    return torch.tensor(STRENGTHS, device=total.device)[total.argmin(0)][:, None, None]


class _Objective:
    """The objective of each combination on batches of some of the vectors."""

    def __init__(self, hidden: Hidden, among: Tensor | None = None) -> None:
        device = hidden.vectors.device
        self.hidden = hidden
        self.among = torch.arange(hidden.vectors.shape[1], device=device) if among is None else among
        centred = hidden.titles - hidden.titles.mean(0)
        metric = centred.t() @ centred / len(centred)  # (d, d)
        self.metric = metric + torch.eye(len(metric), device=device) * (RIDGE * metric.diagonal().mean() + 1e-12)
        self.spread = ((hidden.vectors @ self.metric) * hidden.vectors).sum(-1).mean(1).clamp(min=1e-12)  # (K,)
        self.combination, self.attribute = hidden.selected.nonzero(as_tuple=True)  # (D,) both
        distance = 2 * hidden.vectors.square().sum(-1).mean(1)  # (K,) mean squared distance of two vectors
        self.distance = distance[self.combination].clamp(min=1e-12)  # (D,)

    def draw(self, generator: torch.Generator) -> Hidden:
        """A batch of S vectors."""
        index = torch.randint(len(self.among), (BATCH,), generator=generator).to(self.among.device)
        return self.hidden.take(self.among[index])

    def __call__(self, batch: Hidden, moved: Tensor) -> Tensor:
        """(K, S, d) vectors after the map -> (K,)."""
        change = moved - batch.vectors
        distortion = ((change @ self.metric) * change).sum(-1).mean(1) / self.spread
        weights = torch.stack(
            [pair_weights(batch.values[:, a], batch.user, size) for a, size in enumerate(batch.num_values)]
        )
        dependence = Dependence.apply(moved[self.combination], weights[self.attribute], self.distance)
        return distortion.index_add(0, self.combination, batch.weight * dependence)


def pair_weights(values: Tensor, user: Tensor, num_values: int) -> Tensor:
    """(S,) values, -1 unknown, (S,) users -> (S, S) weights of kernels in the dependence.

    Two users of one value v count P(v) / pairs of v, any two users -1 / pairs; a value of fewer than two users nothing.
    """
    known = values >= 0
    apart = ((user[:, None] != user) & known[:, None] & known).float()  # (S, S)
    same = F.one_hot(values.clamp(min=0), num_values).float() * known[:, None]  # (S, A)
    pairs = (same * (apart @ same)).sum(0)  # (A,)
    count = same.sum(0) * (pairs > 0)
    of_value = count / count.sum().clamp(min=1) / pairs.clamp(min=1)
    return apart * ((same * of_value) @ same.t() - (count.sum() > 0).float() / apart.sum().clamp(min=1))


class Dependence(torch.autograd.Function):
    """Sum over pairs of weight times mean kernel: (D, S, d), (D, S, S), (D,) -> (D,).

    The gradient of a pair's kernel pulls its two vectors along their difference, so it is one product with the pulls.
    """

    @staticmethod
    def forward(ctx, vectors: Tensor, weights: Tensor, distance: Tensor) -> Tensor:
        squares = vectors.square().sum(-1)  # (D, S)
        between = torch.baddbmm(squares[:, :, None] + squares[:, None], vectors, vectors.transpose(1, 2), alpha=-2)
        kernel = between.clamp_(min=0).mul_(-0.5 / distance[:, None, None]).exp_()  # (D, S, S)
        total, slope = kernel.clone(), kernel.clone()
        for width in WIDTHS[1:]:
            kernel.square_()
            total += kernel
            slope.add_(kernel, alpha=width)
        pull = slope.mul_(weights).div_(2 * len(WIDTHS) * distance[:, None, None])
        ctx.save_for_backward(torch.baddbmm(pull.sum(-1, keepdim=True) * vectors, pull, vectors, alpha=-1).mul_(-4))
        return (total * weights).sum((1, 2)) / len(WIDTHS)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slope,) = ctx.saved_tensors
        return slope * gradient[:, None, None], None, None
