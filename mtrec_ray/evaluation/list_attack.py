"""Attack on top-k lists: can an attribute be predicted from a user's recommended titles? Same protocol as `audit`.

A list is a bag of titles, a sparse row of ones; the order within the list is not used. Attackers: multinomial logistic
regression (L2 strength chosen) and multinomial naive Bayes (smoothing chosen), which needs few users per title.

Legend: N users, k list length, T titles, S titles that occur, P labelings, A attribute values.
"""

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import log_softmax

from mtrec_ray.evaluation.attackers import AttackData, Attacker, Scores, balanced_log_loss, logistic_scores
from mtrec_ray.evaluation.audit import AttributeLabels, AuditResult, AuditSettings, audit_inputs, check_users

SMOOTHING = (0.1, 1.0, 10.0)
"""Pseudo-users that naive Bayes adds to every title, distributed as the titles are over all users."""


def audit_lists(
    lists: np.ndarray, labels: AttributeLabels, user_keys: np.ndarray, num_titles: int, settings: AuditSettings
) -> AuditResult:
    """Audit lists for one attribute: (N, k) title indices, -1 = no title; (N,) uint64 keys.

    Users, folds and permutations are those of `audit_vectors`, so results compare. Raises ValueError before any
    training if shapes, values or keys do not fit.
    """
    bags = bag_of_titles(lists, num_titles)
    check_users(labels, user_keys, len(lists), settings)
    return audit_inputs(bags, labels, user_keys, LIST_ATTACKERS, settings)


def bag_of_titles(lists: np.ndarray, num_titles: int) -> csr_matrix:
    """(N, k) int title indices in [0, T), -1 = no title -> (N, T) float32 of zeros and ones."""
    if lists.ndim != 2 or lists.min(initial=-1) < -1 or lists.max(initial=-1) >= num_titles:
        raise ValueError(f"expected (N, k) title indices in [0, {num_titles}) or -1, found shape {lists.shape}")
    user, column = np.nonzero(lists >= 0)
    ones = np.ones(len(user), dtype=np.float32)
    bag = csr_matrix((ones, (user, lists[user, column])), shape=(len(lists), num_titles))
    bag.data[:] = 1  # a title twice in a list counts once
    return bag


def naive_bayes_scores(data: AttackData) -> Scores:
    """Multinomial naive Bayes with even priors (McCallum & Nigam 1998); the smoothing with the best validation loss."""
    on_value = (data.train_labels[:, None] == np.arange(data.num_values)[:, None]).astype(np.float32)  # (P, A, n)
    shape = on_value.shape[:2]
    overall = np.asarray(data.train.sum(axis=0)).ravel() + 1.0
    prior = len(overall) * overall / overall.sum()
    occurring = np.unique(np.concatenate([x.indices for x in (data.train, data.validation, data.test)]))  # (S,)
    train, validation, test = (x[:, occurring] for x in (data.train, data.validation, data.test))
    counts = np.asarray(train.T @ on_value.reshape(-1, on_value.shape[2]).T).T  # (P * A, S)
    scored = []
    for smoothing in SMOOTHING:
        total = counts.sum(axis=1, keepdims=True) + smoothing * len(overall)  # smoothing covers the other titles too
        log_odds = np.log((counts + smoothing * prior[occurring]) / total).T.astype(np.float32)  # (S, P * A)
        parts = ((part @ log_odds).reshape(-1, *shape) for part in (validation, test))
        scored.append(Scores(*(log_softmax(part, axis=-1).transpose(1, 0, 2) for part in parts)))
    losses = [balanced_log_loss(scores.validation, data.validation_labels) for scores in scored]  # (3, P)
    best, rows = np.argmin(losses, axis=0), np.arange(shape[0])
    return Scores(*(np.stack(part)[best, rows] for part in zip(*scored, strict=True)))


LIST_ATTACKERS: dict[str, Attacker] = {"logistic": logistic_scores, "naive_bayes": naive_bayes_scores}
