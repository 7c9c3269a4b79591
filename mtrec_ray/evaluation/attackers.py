"""Attackers: classifiers that predict an attribute, for many labelings at once.

Strengths and stopping are decided per labeling on validation users, but one matrix product serves all: this makes a
null with full re-training affordable. `paper` is paper B's attacker, shaped and trained like its discriminator, by the
plain cross entropy; the others minimise the class-balanced one.

Legend: P labelings, n / v / t train, validation and test users, d input width, A attribute values, T titles, S titles
that occur in a list.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.special import log_softmax
from sklearn import config_context
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

MAX_CELLS = 2**25  # logits or coefficients in memory of the logistic attacker; more labelings are solved in turn
SMOOTHING = (0.1, 1.0, 10.0)  # pseudo-users that naive Bayes adds to every title, as the titles are over all users


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

    @property
    def log_prior(self) -> np.ndarray:
        """Log frequency of each value among train users, 0 where it does not occur: (P, 1, A)."""
        counts = (self.train_labels[:, None] == np.arange(self.num_values)[:, None]).sum(axis=2, dtype=np.float32)
        return np.log(np.where(counts > 0, counts / self.train_labels.shape[1], 1))[:, None]


Attacker = Callable[[AttackData], np.ndarray]
"""Gives log probabilities of test users, (P, t, A) float32, as if all values were equally frequent.

Adding `AttackData.log_prior` makes them those of users as they are.
"""


def balanced_log_loss(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean over values of the users' log loss: (P, v, A), (P, v) -> (P,)."""
    chosen = np.take_along_axis(log_probabilities, labels[:, :, None], axis=-1)[..., 0]
    return -(class_weights(labels, log_probabilities.shape[-1]) * chosen).mean(axis=-1)


def logistic_scores(data: AttackData) -> np.ndarray:
    """Multinomial logistic regression; L2 weakens as long as the validation loss falls."""
    parts = [data.train, data.validation, data.test]
    if isinstance(data.train, np.ndarray):  # principal axes: same model, fewer steps
        basis = np.linalg.eigh(data.train.T @ data.train)[1]
        parts = [part @ basis for part in parts]
    else:  # most columns of a large catalogue occur in no train row and need no coefficient
        occurring = np.unique(data.train.indices)
        parts = [part[:, occurring] for part in parts]
    train, validation, test = map(with_intercept, parts)
    step = max(
        1, MAX_CELLS // (data.num_values * max(train.shape[1], *(x.shape[0] for x in (train, validation, test))))
    )
    scored = []
    for first in range(0, len(data.train_labels), step):
        labels, held_out = (of[first : first + step] for of in (data.train_labels, data.validation_labels))
        best = np.zeros((train.shape[1], len(labels), data.num_values), np.float32)
        best_loss, improving, start = np.full(len(labels), np.inf), np.arange(len(labels)), None
        for strength in L2_STRENGTHS:
            fitted = fit_logistic(train, labels[improving], data.num_values, strength, start)  # (d + 1, P, A)
            loss = balanced_log_loss(log_probabilities(validation, fitted), held_out[improving])
            better = loss < best_loss[improving]
            improving, start = improving[better], fitted[:, better]
            if not len(improving):
                break
            best[:, improving], best_loss[improving] = start, loss[better]
        scored.append(log_probabilities(test, best))
    return np.concatenate(scored)


def mlp_scores(data: AttackData, hidden: tuple[int, ...] = (1,), balanced: bool = True) -> np.ndarray:
    """MLPs with ReLU on dense inputs, of the epoch with the best validation loss.

    `hidden` layers are multiples of d. Every labeling has the same initial weights and batches, so results do not
    depend on the number of labelings. Training takes at most 800 steps or 20 epochs, whichever is more, and stops
    after 32 steps or 4 epochs without improvement: limits in steps, as few users make epochs short.
    """
    generator = torch.Generator().manual_seed(data.seed)
    train, validation, test = (torch.from_numpy(np.asarray(x)) for x in (data.train, data.validation, data.test))
    (labels, weights), (validation_labels, validation_weights) = (
        map(torch.from_numpy, (of, class_weights(of, data.num_values) if balanced else np.ones(of.shape, np.float32)))
        for of in (data.train_labels, data.validation_labels)
    )
    width = train.shape[1]
    network = _initial_network((width, *(m * width for m in hidden), data.num_values), len(labels), generator)
    optimizer = torch.optim.Adam(network, lr=3e-3, fused=True)
    best = [parameter.detach().clone() for parameter in network]
    best_loss, best_epoch = torch.full((len(labels),), torch.inf), 0
    steps = -(-len(train) // 128)
    max_epochs, patience = max(20, -(-800 // steps)), max(4, -(-32 // steps))
    for epoch in range(max_epochs):
        for rows in torch.randperm(len(train), generator=generator).split(128):
            loss = _losses(network, train[rows], labels[:, rows], weights[:, rows]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            validation_loss = _losses(network, validation, validation_labels, validation_weights)
            better = validation_loss < best_loss
            for saved, parameter in zip(best, network, strict=True):
                saved[better] = parameter[better]
        best_loss, best_epoch = torch.minimum(validation_loss, best_loss), epoch if bool(better.any()) else best_epoch
        if epoch - best_epoch >= patience:
            break
    with torch.no_grad():
        logits = _forward(best, test).numpy()
    return log_softmax(logits if balanced else logits - data.log_prior, axis=-1)


def boosting_scores(
    data: AttackData, max_trees: int = 60, patience: int = 10, learning_rate: float = 0.1
) -> np.ndarray:
    """Gradient boosting (Friedman 2001); the validation loss chooses the number of trees.

    One tree per step fits the residuals of all values together, so many values cost no more than two.
    """
    settings = {"max_depth": 3, "max_features": "sqrt", "min_samples_leaf": 5}
    scale = learning_rate * data.num_values**2 / (data.num_values - 1)  # divided by the curvature at even probabilities
    train, end = data.train.shape[0], data.train.shape[0] + data.validation.shape[0]
    inputs = np.concatenate([data.train, data.validation, data.test], dtype=np.float32)
    scored = []
    for labels, validation_labels in zip(data.train_labels, data.validation_labels, strict=True):
        weights = class_weights(labels[None], data.num_values)[0].astype(np.float64)
        target = (labels[:, None] == np.arange(data.num_values)).astype(np.float64)
        logits = np.zeros((len(inputs), data.num_values))
        best_loss, best_number, best = np.inf, 0, logits
        for number in range(max_trees):
            tree = DecisionTreeRegressor(random_state=(data.seed + number) % 2**32, **settings)
            residual = target - softmax(logits[:train])
            with config_context(skip_parameter_validation=True):  # a third of a small tree's time
                tree.fit(inputs[:train], residual, sample_weight=weights, check_input=False)
            logits = logits + scale * tree.tree_.predict(inputs).reshape(logits.shape)
            loss = balanced_log_loss(log_softmax(logits[train:end], axis=1)[None], validation_labels[None])[0]
            if loss < best_loss:
                best_loss, best_number, best = loss, number, logits
            elif number - best_number >= patience:
                break
        scored.append(log_softmax(best[end:], axis=1).astype(np.float32))
    return np.stack(scored)


def bag_of_titles(lists: np.ndarray, num_titles: int) -> csr_matrix:
    """(N, k) title indices in [0, T), -1 = no title -> (N, T) float32 of zeros and ones."""
    user, column = np.nonzero(lists >= 0)
    ones = np.ones(len(user), dtype=np.float32)
    bag = csr_matrix((ones, (user, lists[user, column])), shape=(len(lists), num_titles))
    bag.data[:] = 1  # a title twice in a list counts once
    return bag


def naive_bayes_scores(data: AttackData) -> np.ndarray:
    """Naive Bayes with even priors (McCallum & Nigam 1998) and the best smoothing."""
    on_value = (data.train_labels[:, None] == np.arange(data.num_values)[:, None]).astype(np.float32)  # (P, A, n)
    shape = on_value.shape[:2]
    overall = np.asarray(data.train.sum(axis=0)).ravel() + 1.0
    prior = len(overall) * overall / overall.sum()
    occurring = np.unique(np.concatenate([x.indices for x in (data.train, data.validation, data.test)]))  # (S,)
    train, validation, test = (x[:, occurring] for x in (data.train, data.validation, data.test))
    counts = np.asarray(train.T @ on_value.reshape(-1, on_value.shape[2]).T).T  # (P * A, S)
    losses, scored = [], []
    for smoothing in SMOOTHING:
        total = counts.sum(axis=1, keepdims=True) + smoothing * len(overall)  # smoothing covers the other titles too
        log_odds = np.log((counts + smoothing * prior[occurring]) / total).T.astype(np.float32)  # (S, P * A)
        on_validation, on_test = (
            log_softmax((part @ log_odds).reshape(-1, *shape), axis=-1).transpose(1, 0, 2)
            for part in (validation, test)
        )
        losses.append(balanced_log_loss(on_validation, data.validation_labels))
        scored.append(on_test)
    return np.stack(scored)[np.argmin(losses, axis=0), np.arange(shape[0])]


def _initial_network(widths: tuple[int, ...], num_labelings: int, generator: torch.Generator) -> list[torch.Tensor]:
    """[weight (P, in, out), bias (P, 1, out), ...], He initialisation, zero biases."""
    network = []
    for width, next_width in pairwise(widths):
        weight = torch.randn((width, next_width), generator=generator) * (2 / width) ** 0.5
        network += [weight.repeat(num_labelings, 1, 1), torch.zeros(num_labelings, 1, next_width)]
    return [parameter.requires_grad_() for parameter in network]


def _forward(network: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """Logits of each labeling's network: (n, d) -> (P, n, A)."""
    hidden = inputs.expand(len(network[0]), *inputs.shape)
    for layer in range(0, len(network), 2):
        hidden = torch.baddbmm(network[layer + 1], functional.relu(hidden) if layer else hidden, network[layer])
    return hidden


def _losses(network: list[torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor):
    """Mean weighted cross entropy of each labeling: (P,)."""
    logits = _forward(network, inputs)
    each = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return (each * weights).mean(dim=1)


PAPER = "paper"
VECTOR_ATTACKERS: dict[str, Attacker] = {
    PAPER: partial(mlp_scores, balanced=False),
    "logistic": logistic_scores,
    "mlp": partial(mlp_scores, hidden=(2, 1)),
    "boosting": boosting_scores,
}
LIST_ATTACKERS: dict[str, Attacker] = {"logistic": logistic_scores, "naive_bayes": naive_bayes_scores}
