"""Transport: users of different values become alike, others and noise stay; a pack is fitted as its members are."""

import copy
from itertools import product

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from mtrec_ray.models import transport
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.models.shapes import EliminatorConfig
from mtrec_ray.models.transport import BATCH, FOLDS, WIDTHS, Dependence, num_steps, pair_weights

V, D, USERS = 4000, 8, 1000
ATTRIBUTES = {"gender": 2, "age": 3}
FIT = {"weight": 100.0, "steps": 300, "seed": 0, "find_strength": True}


def make_pack(combinations: list[tuple[str, ...]]) -> StackedEliminators:
    pack = StackedEliminators(EliminatorConfig(), ATTRIBUTES, combinations, D)
    pack.init_weights(0)
    return pack


def moved(pack: StackedEliminators, vectors: Tensor, values: Tensor) -> Tensor:
    """(V, d) vectors, the same for each combination -> (K, V, d)."""
    hidden = vectors.expand(len(pack.combinations), -1, -1)[:, :, None]
    return pack.for_all(values).transport(hidden)[:, :, 0].detach()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def user() -> Tensor:
    return torch.arange(V) % USERS


@pytest.fixture(scope="module")
def values(user) -> Tensor:
    """(V, 2) the same for all vectors of a user, an eighth of the genders unknown."""
    generator = torch.Generator().manual_seed(1)
    own = torch.stack([torch.randint(size, (USERS,), generator=generator) for size in (2, 3)], 1)
    own[torch.rand(USERS, generator=generator) < 1 / 8, 0] = -1
    return own[user]


@pytest.fixture(scope="module")
def planted(user, values) -> Tensor:
    """Gender moves one way along axis 0 in one half of the users and the other way in the other, axis 1 tells which."""
    generator = torch.Generator().manual_seed(2)
    side = torch.where(torch.rand(USERS, generator=generator) < 0.5, 1.0, -1.0)[user]
    vectors = torch.randn(V, D, generator=generator)
    vectors[:, 0] += 1.5 * side * (values[:, 0] == 1)
    vectors[:, 1] += 3 * side
    return vectors


def fit(pack: StackedEliminators, vectors: Tensor, values: Tensor, user: Tensor, **settings: object) -> None:
    stacked = vectors.expand(len(pack.combinations), -1, -1)
    pack.fit_transport(stacked, values, user, user % FOLDS, torch.eye(D), **(FIT | settings))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def fitted(planted, values, user) -> StackedEliminators:
    """Nobody changes it."""
    pack = make_pack([("gender",)])
    fit(pack, planted, values, user)
    return pack


def attack_auc(vectors: Tensor, gender: Tensor, attacker: object) -> float:
    """Of an attacker that learns on half of the known users."""
    x, y = vectors[gender >= 0].numpy(), gender[gender >= 0].numpy()
    half = len(x) // 2  # users repeat in the same order: another vector of each
    attacker.fit(x[:half], y[:half])  # pyright: ignore[reportAttributeAccessIssue]
    return roc_auc_score(y[half:], attacker.predict_proba(x[half:])[:, 1])  # pyright: ignore[reportAttributeAccessIssue]


def network() -> MLPClassifier:
    return MLPClassifier((32,), early_stopping=True, random_state=0)


def test_what_only_a_network_can_read_is_hidden(fitted, planted, values):
    """The values' means are equal from the start, so a plane reads nothing and one shift a value could not help."""
    (after,) = moved(fitted, planted, values)
    gender = values[:, 0]
    assert attack_auc(planted, gender, LogisticRegression()) < 0.65
    assert attack_auc(planted, gender, network()) > 0.72
    assert attack_auc(after, gender, network()) < 0.58
    assert (after - planted).norm(dim=1).mean() < 0.4 * planted.norm(dim=1).mean()


def test_unknown_values_and_unselected_attributes_move_no_user(fitted, planted, values):
    (after,) = moved(fitted, planted, values)
    unknown = values[:, 0] < 0
    assert torch.equal(after[unknown], planted[unknown])
    assert (after[~unknown] != planted[~unknown]).any(1).float().mean() > 0.9
    other_age = torch.stack([values[:, 0], (values[:, 1] + 1) % 3], 1)
    assert torch.equal(moved(fitted, planted, other_age)[0], after)


def test_noise_is_left_alone(generator, values, user):
    vectors = torch.randn(V, D, generator=generator)
    pack = make_pack([("age",)])
    fit(pack, vectors, values, user)
    assert pack.transport_strength.item() <= 0.5
    (after,) = moved(pack, vectors, values)
    assert (after - vectors).norm(dim=1).mean() < 0.15 * vectors.norm(dim=1).mean()


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "NUM_CHECKS", 2)


def test_combination_is_fitted_as_if_it_were_alone(few_checks, planted, values, user):
    together = make_pack([("gender",), ("gender", "age")])
    fit(together, planted, values, user, steps=20)
    alone = make_pack([("gender", "age")])
    fit(alone, planted, values, user, steps=20)
    assert torch.equal(together.transport_strength[1], alone.transport_strength[0])
    torch.testing.assert_close(
        moved(together, planted, values)[1], moved(alone, planted, values)[0], rtol=1e-4, atol=1e-4
    )


def test_fitting_continues_from_the_current_maps(fitted, planted, values, user):
    pack = copy.deepcopy(fitted)
    strength, before = pack.transport_strength.clone(), moved(pack, planted, values)
    fit(pack, planted, values, user, steps=1, find_strength=False)
    assert torch.equal(pack.transport_strength, strength)
    torch.testing.assert_close(moved(pack, planted, values), before, rtol=0, atol=0.2)


def test_few_users_and_values_without_users_are_supported(few_checks):
    pack = make_pack([("gender",), ("age",), ("gender", "age")])
    values = torch.tensor([[0, -1], [0, 2], [-1, 2]])
    vectors = torch.randn(3, D, generator=torch.Generator().manual_seed(1))
    fit(pack, vectors, values, torch.tensor([0, 1, 1]), steps=3)
    assert torch.isfinite(moved(pack, vectors, values)).all()


def test_steps_grow_with_the_vectors_between_two_bounds():
    assert num_steps(60, 20 * BATCH) == 2 * num_steps(60, 10 * BATCH) == 1200
    assert num_steps(60, 0) == num_steps(60, BATCH) >= 300
    assert num_steps(60, 10**9) == num_steps(60, 10**6) <= 6000


def pairwise_dependence(vectors: Tensor, values: Tensor, user: Tensor, distance: float) -> Tensor:
    """Sum over values v of P(v) (mean kernel of two users of v - mean kernel of any two users)."""

    def mean_kernel(rows: list[int]) -> Tensor:
        pairs = [(i, j) for i, j in product(rows, rows) if user[i] != user[j]]
        kernels = [
            torch.stack([(-w * (vectors[i] - vectors[j]).square().sum() / (2 * distance)).exp() for w in WIDTHS]).mean()
            for i, j in pairs
        ]
        return torch.stack(kernels).mean()

    known = [i for i, value in enumerate(values.tolist()) if value >= 0]
    total = vectors.new_zeros(())
    for value in sorted({values[i].item() for i in known}):
        rows = [i for i in known if values[i] == value]
        total = total + len(rows) / len(known) * (mean_kernel(rows) - mean_kernel(known))
    return total


def test_dependence_and_its_gradient_match_the_definition(generator):
    vectors = torch.randn(9, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    values, user = torch.tensor([0, 1, 1, 0, -1, 2, 2, 1, 0]), torch.tensor([0, 1, 2, 3, 4, 5, 6, 1, 7])
    expected = pairwise_dependence(vectors, values, user, 4.0)
    (gradient,) = torch.autograd.grad(expected, vectors)
    weights = pair_weights(values, user, 4).double()
    found = Dependence.apply(vectors[None], weights[None], torch.tensor([4.0], dtype=torch.float64))
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-7)
    (own,) = torch.autograd.grad(found.sum(), vectors)
    torch.testing.assert_close(own, gradient, rtol=1e-5, atol=1e-7)


def test_estimate_without_dependence_has_mean_zero(generator):
    found = []
    for _ in range(400):
        vectors, values = torch.randn(30, 2, generator=generator), torch.randint(0, 3, (30,), generator=generator)
        weights = pair_weights(values, torch.arange(30), 3)
        found.append(Dependence.apply(vectors[None], weights[None], torch.tensor([4.0])).item())
    mean, error = torch.tensor(found).mean(), torch.tensor(found).std() / 20
    assert abs(mean) < 3 * error
    assert error < 0.002


def test_the_same_seed_gives_the_same_map(few_checks, planted, values, user):
    one, other = make_pack([("gender",)]), make_pack([("gender",)])
    for pack in (one, other):
        fit(pack, planted, values, user, steps=5)
    for name, tensor in vars(one.transport).items():
        assert torch.equal(tensor, getattr(other.transport, name)), name
