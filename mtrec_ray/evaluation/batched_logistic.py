"""Multinomial logistic regression of many labelings at once.

Legend: n users, d inputs (the intercept is one more), P labelings, A attribute values.
"""

import math
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from scipy.special import log_softmax

Matrix = Any  # (rows, d) float32, `np.ndarray` or `scipy.sparse.csr_matrix`, which has no usable type annotations

L2_STRENGTHS = (30.0, 3.0, 0.3, 0.03)  # in units of (mean squared row norm) / n, to suit any width and number of users


def class_weights(labels: np.ndarray, num_values: int) -> np.ndarray:
    """Weights with the same total for each value that occurs, of sum n: (P, n) -> (P, n)."""
    counts = (labels[:, :, None] == np.arange(num_values)).sum(axis=1)  # (P, A)
    of_value = labels.shape[1] / np.maximum(counts, 1) / (counts > 0).sum(axis=1, keepdims=True)
    return np.take_along_axis(of_value, labels, axis=1).astype(np.float32)


def fit_logistic(
    inputs: Matrix,
    labels: np.ndarray,
    num_values: int,
    strength: float,
    start: np.ndarray | None = None,
    tolerance: float = 3e-4,
    max_steps: int = 300,
) -> np.ndarray:
    """Coefficients of class-balanced regressions: (n, d + 1), (P, n) -> (d + 1, P, A).

    Accelerated gradient steps with restarts (Nesterov 1983, O'Donoghue & Candes 2015) in a diagonal metric that bounds
    the curvature (Bohning 1992), from `start` until the gradient is below `tolerance`. The last input is the
    unpenalised intercept; `strength` is in the units of `L2_STRENGTHS`.
    """
    num_rows, num_inputs = inputs.shape
    weights = class_weights(labels, num_values).T / num_rows  # (n, P)
    target = (labels.T[:, :, None] == np.arange(num_values)).astype(np.float32)  # (n, P, A)
    squares = inputs**2 if isinstance(inputs, np.ndarray) else inputs.multiply(inputs)
    second_moment = np.asarray(squares.mean(axis=0)).ravel().astype(np.float32) + 1e-6
    l2 = np.full((num_inputs, 1), strength * second_moment[:-1].sum() / num_rows, np.float32)
    l2[-1] = 0
    bound = _largest_curvature(inputs, weights, second_moment)  # (P,)
    curvature = 0.5 * second_moment[:, None] * bound + l2  # (d + 1, P)
    shape = (num_inputs, len(labels), num_values)
    point = np.zeros(shape, np.float32) if start is None else start
    ahead, momentum = point, 1.0
    for _ in range(max_steps):
        logits = (inputs @ ahead.reshape(num_inputs, -1)).reshape(num_rows, *shape[1:])
        residual = (softmax(logits) - target) * weights[:, :, None]
        gradient = (inputs.T @ residual.reshape(num_rows, -1)).reshape(shape) + l2[:, :, None] * ahead
        moved = ahead - gradient / curvature[..., None]
        if np.abs(gradient).max() < tolerance:
            return moved
        if (gradient * (moved - point)).sum() > 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2  # a Python float preserves float32
        point, ahead, momentum = moved, moved + (momentum - 1) / following * (moved - point), following
    return point


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(dim=-1).numpy()


def with_intercept(inputs: Matrix) -> Matrix:
    """Dense or sparse inputs with a last column of ones."""
    ones = np.ones((inputs.shape[0], 1), dtype=np.float32)
    return np.hstack([inputs, ones]) if isinstance(inputs, np.ndarray) else csr_matrix(hstack([inputs, ones]))


def _largest_curvature(inputs: Matrix, weights: np.ndarray, second_moment: np.ndarray) -> np.ndarray:
    """Largest eigenvalue of S^-1/2 X' W X S^-1/2 by power iteration, plus 20%: (P,)."""
    scale = 1 / np.sqrt(second_moment)[:, None]
    start = np.random.default_rng(0).normal(size=(inputs.shape[1], 1)).astype(np.float32)
    vector, size = np.repeat(start, weights.shape[1], axis=1), np.ones(weights.shape[1])
    for _ in range(30):
        vector = vector / np.linalg.norm(vector, axis=0)
        vector = scale * (inputs.T @ (weights * (inputs @ (scale * vector))))
        size = np.linalg.norm(vector, axis=0)
    return (1.2 * size).astype(np.float32)


def log_probabilities(inputs: Matrix, coefficients: np.ndarray) -> np.ndarray:
    """(n, d + 1), (d + 1, P, A) -> (P, n, A)."""
    logits = (inputs @ coefficients.reshape(len(coefficients), -1)).reshape(-1, *coefficients.shape[1:])
    return log_softmax(logits, axis=-1).transpose(1, 0, 2)
