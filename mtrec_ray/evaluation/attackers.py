"""Attackers: classifiers that try to read an attribute from frozen inputs, each trained for many labelings at once.

An attacker takes one split (`AttackData`) with P labelings of the same users, the true one and permuted ones, and
gives scores of the validation and test users under each. Everything that a labeling decides (class weights, the
strength of regularisation, when to stop) is decided for it alone on its own train and validation labels, so a permuted
labeling goes through exactly what the true one went through. Labelings share the inputs, and that is what makes a null
with full re-training affordable: one matrix product serves all of them.

* `paper`: paper B's attacker, shaped like its discriminator (one hidden layer as wide as the input, ReLU), Adam.
* `logistic`: multinomial logistic regression, to convergence, L2 strength chosen on validation users.
* `mlp`: two hidden layers, 2d and d wide.
* `boosting`: gradient boosting (Friedman 2001) of shallow trees; a tree's leaves hold all values' steps (a vector).

All train on a class-balanced loss and choose by the class-balanced log loss of the validation users, which is smoother
than accuracy on the few of a rare value.

Legend: P labelings, n / v / t train, validation and test users, d input width, A attribute values, K L2 strengths.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.tree import DecisionTreeRegressor
from torch.nn import functional

from mtrec_ray.evaluation.batched_logistic import (
    L2_STRENGTHS,
    Matrix,
    class_weights,
    fit_logistic,
    log_probabilities,
    softmax,
    with_intercept,
)

MAX_CELLS = 2**25
"""Logits or coefficients held at once by the logistic attacker; labelings beyond it are solved in turn."""


@dataclass(frozen=True)
class AttackData:
    """Inputs of one split and the labelings of its train and validation users."""

    train: Matrix  # (n, d) float32
    validation: Matrix  # (v, d)
    test: Matrix  # (t, d)
    train_labels: np.ndarray  # (P, n) int64 in [0, A)
    validation_labels: np.ndarray  # (P, v)
    num_values: int
    seed: int = 0


class Scores(NamedTuple):
    """Class-balanced log probabilities of the two parts that are scored, float32."""

    validation: np.ndarray  # (P, v, A)
    test: np.ndarray  # (P, t, A)


Attacker = Callable[[AttackData], Scores]


def balanced_log_loss(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean over values of the users' log loss: (P, ..., v, A), (P, v) -> (P, ...)."""
    num_values, middle = log_probabilities.shape[-1], (1,) * (log_probabilities.ndim - 3)
    index = labels.reshape(len(labels), *middle, -1, 1)
    chosen = np.take_along_axis(log_probabilities, index, axis=-1)[..., 0]
    weights = class_weights(labels, num_values).reshape(len(labels), *middle, -1)
    return -(weights * chosen).mean(axis=-1)


def logistic_scores(data: AttackData) -> Scores:
    """Multinomial logistic regression, dense or sparse inputs; the L2 strength with the best validation loss."""
    dense = isinstance(data.train, np.ndarray)
    basis = np.linalg.eigh(data.train.T @ data.train)[1] if dense else None  # principal axes: same model, fewer steps
    parts = [data.train, data.validation, data.test]
    if not dense:  # what no train row has gets no coefficient: most of a large catalogue
        there = np.unique(data.train.indices)
        parts = [part[:, there] for part in parts]
    train, validation, test = (with_intercept(part, basis) for part in parts)
    columns = len(L2_STRENGTHS) * data.num_values
    step = max(1, MAX_CELLS // (columns * max(train.shape[1], *(x.shape[0] for x in (train, validation, test)))))
    scored = []
    for begin in range(0, len(data.train_labels), step):
        chunk = slice(begin, begin + step)
        coefficients = fit_logistic(train, data.train_labels[chunk], data.num_values)  # (d + 1, P, K, A)
        on_validation = log_probabilities(validation, coefficients)  # (P, K, v, A)
        best = balanced_log_loss(on_validation, data.validation_labels[chunk]).argmin(axis=1)
        rows = np.arange(len(best))
        chosen = coefficients[:, rows, best][:, :, None]  # (d + 1, P, 1, A)
        scored.append(Scores(on_validation[rows, best], log_probabilities(test, chosen)[:, 0]))
    return Scores(*(np.concatenate(part) for part in zip(*scored, strict=True)))


def mlp_scores(data: AttackData, hidden: tuple[int, ...], max_steps: int = 800, patience_steps: int = 32) -> Scores:
    """MLPs with ReLU on dense inputs, Adam at 3e-3, batches of 128; the epoch with the best validation loss counts.

    Every labeling starts from the same weights and sees the same batches, so the true one's result does not depend on
    how many permuted ones there are. Limits are in steps, which few users make many epochs of: at most `max_steps` or
    20 epochs, and an end after `patience_steps` or 4 epochs without a better one.
    """
    generator = torch.Generator().manual_seed(data.seed)
    train, validation, test = (torch.from_numpy(np.asarray(x)) for x in (data.train, data.validation, data.test))
    labels, weights = torch.from_numpy(data.train_labels), _torch_weights(data.train_labels, data.num_values)
    held_labels = torch.from_numpy(data.validation_labels)
    held_weights = _torch_weights(data.validation_labels, data.num_values)
    network = _initial_network((train.shape[1], *hidden, data.num_values), len(labels), generator)
    optimizer = torch.optim.Adam(network, lr=3e-3)
    best = [parameter.detach().clone() for parameter in network]
    best_loss, best_epoch = torch.full((len(labels),), torch.inf), 0
    steps = -(-len(train) // 128)
    max_epochs, patience = max(20, -(-max_steps // steps)), max(4, -(-patience_steps // steps))
    for epoch in range(max_epochs):
        for rows in torch.randperm(len(train), generator=generator).split(128):
            loss = _losses(network, train[rows], labels[:, rows], weights[:, rows]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            held_loss = _losses(network, validation, held_labels, held_weights)
            better = held_loss < best_loss
            for kept, parameter in zip(best, network, strict=True):
                kept[better] = parameter[better]
        best_loss, best_epoch = torch.minimum(held_loss, best_loss), epoch if bool(better.any()) else best_epoch
        if epoch - best_epoch >= patience:
            break
    with torch.no_grad():
        return Scores(*(_forward(best, x).log_softmax(dim=-1).numpy() for x in (validation, test)))


def boosting_scores(data: AttackData, max_trees: int = 60, patience: int = 10, learning_rate: float = 0.1) -> Scores:
    """Gradient boosting on dense inputs, trees of depth 3 on random inputs; the number with the best validation loss.

    One tree a step fits the residuals of all values together, so many values cost no more than two.
    """
    settings = {"max_depth": 3, "max_features": "sqrt", "min_samples_leaf": 5}
    scale = learning_rate * data.num_values**2 / (data.num_values - 1)  # over the curvature of even probabilities
    train, held = data.train.shape[0], data.train.shape[0] + data.validation.shape[0]
    inputs = np.concatenate([data.train, data.validation, data.test], dtype=np.float32)
    found = []
    for labels, held_labels in zip(data.train_labels, data.validation_labels, strict=True):
        weights = class_weights(labels[None], data.num_values)[0].astype(np.float64)
        target = (labels[:, None] == np.arange(data.num_values)).astype(np.float64)
        logits = np.zeros((len(inputs), data.num_values))
        best_loss, best_number, best = np.inf, 0, logits
        for number in range(max_trees):
            tree = DecisionTreeRegressor(random_state=(data.seed + number) % 2**32, **settings)
            residual = target - softmax(logits[:train])
            tree.fit(inputs[:train], residual, sample_weight=weights, check_input=False)
            logits = logits + scale * tree.tree_.predict(inputs).reshape(logits.shape)
            loss = balanced_log_loss(log_softmax(logits[train:held], axis=1)[None], held_labels[None])[0]
            if loss < best_loss:
                best_loss, best_number, best = loss, number, logits
            elif number - best_number >= patience:
                break
        best = log_softmax(best, axis=1).astype(np.float32)
        found.append((best[train:held], best[held:]))
    return Scores(*(np.stack(part) for part in zip(*found, strict=True)))


def paper_scores(data: AttackData) -> Scores:
    """The attacker of paper B, section 3.1."""
    return mlp_scores(data, (data.train.shape[1],))


def larger_mlp_scores(data: AttackData) -> Scores:
    return mlp_scores(data, (2 * data.train.shape[1], data.train.shape[1]))


VECTOR_ATTACKERS: dict[str, Attacker] = {
    "paper": paper_scores,
    "logistic": logistic_scores,
    "mlp": larger_mlp_scores,
    "boosting": boosting_scores,
}


def _initial_network(widths: tuple[int, ...], num_labelings: int, generator: torch.Generator) -> list[torch.Tensor]:
    """[weight (P, in, out), bias (P, 1, out), ...], He initialisation, zero biases."""
    network = []
    for narrow, wide in pairwise(widths):
        weight = torch.randn((narrow, wide), generator=generator) * (2 / narrow) ** 0.5
        network += [weight.repeat(num_labelings, 1, 1), torch.zeros(num_labelings, 1, wide)]
    return [parameter.requires_grad_() for parameter in network]


def _forward(network: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """Logits of each labeling's network: (n, d) -> (P, n, A)."""
    hidden = inputs.expand(len(network[0]), *inputs.shape)
    for layer in range(0, len(network), 2):
        hidden = torch.baddbmm(network[layer + 1], functional.relu(hidden) if layer else hidden, network[layer])
    return hidden


def _losses(network: list[torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor):
    """Balanced cross entropy of each labeling: -> (P,)."""
    logits = _forward(network, inputs)
    each = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return (each * weights).mean(dim=1)


def _torch_weights(labels: np.ndarray, num_values: int) -> torch.Tensor:
    return torch.from_numpy(class_weights(labels, num_values))
