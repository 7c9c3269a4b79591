"""Closed-form eliminators: on the sphere, composed in the lake's order, other attributes untouched."""

import pytest
import torch
from torch import Tensor

from mtrec_ray.models.closed_form import ClosedFormMaps, ClosedFormMethod, move, sphere_points
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.shapes import SequentialConfig

ATTRIBUTES = {"gender": 2, "age": 3}
COMBINATIONS = [("gender",), ("age",), ("gender", "age")]
WIDTH = 8


@pytest.fixture(scope="module")
def method() -> ClosedFormMethod:
    """Maps fitted to users whose first title depends on both values."""
    backbone = SequentialBackbone(SequentialConfig(num_titles=30, history=5, width=WIDTH))
    generator = torch.Generator().manual_seed(0)
    backbone.init_weights(generator)
    norm = backbone.layers[-1].feed_forward_norm
    with torch.no_grad():
        backbone.titles.weight.normal_(0, 1, generator=generator)
        norm.weight.uniform_(0.5, 2, generator=generator)
        norm.bias.normal_(0, 1, generator=generator)
    history, values = users(600)
    maps = ClosedFormMaps(ATTRIBUTES, COMBINATIONS, WIDTH)
    vectors = backbone.eval().user_vectors(history).detach()
    user = torch.arange(len(history))
    figures = maps.fit(sphere_points(vectors, backbone).detach(), values, user, user % 4)
    assert figures.keys() == ATTRIBUTES.keys()
    return ClosedFormMethod(backbone, maps).eval()


def users(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.stack([torch.randint(n, (count,), generator=generator) for n in ATTRIBUTES.values()], 1)
    history = torch.randint(30, (count, 5), generator=generator)
    history[:, -1] = values[:, 0] * 10 + values[:, 1] * 3 + torch.randint(3, (count,), generator=generator)
    return history, values


def gap(vectors: Tensor, values: Tensor) -> float:
    return float((vectors[values == 1].mean(0) - vectors[values == 0].mean(0)).norm())


def test_hidden_values_have_one_mean_and_others_keep_theirs(method):
    history, values = users(3000, seed=1)
    plain = method.backbone.user_vectors(history)
    gender, age, both = method.user_vectors(history, values)
    assert gap(gender, values[:, 0]) < 0.3 * gap(plain, values[:, 0])
    assert gap(age, values[:, 1]) < 0.3 * gap(plain, values[:, 1])
    assert gap(gender, values[:, 1]) > 0.7 * gap(plain, values[:, 1])
    assert max(gap(both, values[:, 0]), gap(both, values[:, 1])) < 0.4 * gap(plain, values[:, 1])


def test_moved_vectors_are_outputs_of_the_layer_norm(method):
    history, values = users(50)
    points = sphere_points(method.user_vectors(history, values), method.backbone)  # (K, B, d)
    assert points.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(points.square().mean(-1), torch.ones(3, 50), rtol=1e-3, atol=1e-3)


def test_a_combination_composes_its_maps_in_the_lakes_order(method):
    history, values = users(20)
    values[::3, 0] = -1  # does not tell
    vectors = method.backbone.user_vectors(history)
    points = sphere_points(vectors, method.backbone)
    rows = method.pack.value_starts + torch.where(values < 0, method.pack.unknown_rows, values)
    for a in range(2):
        points = (method.pack.weight[rows[:, a]] @ points[:, :, None])[:, :, 0] + method.pack.bias[rows[:, a]]
    norm = method.backbone.layers[-1].feed_forward_norm
    torch.testing.assert_close(method.user_vectors(history, values)[2], norm(points), rtol=1e-4, atol=1e-5)


def test_every_column_is_moved_as_a_user_vector_is(method):
    history, values = users(20)
    torch.testing.assert_close(method(history, values)[:, :, -1], method.user_vectors(history, values))


def test_maps_of_no_attribute_change_nothing(method):
    history, values = users(20)
    vectors = method.backbone.user_vectors(history)
    weight, bias = method.pack.compose((), values)
    torch.testing.assert_close(
        move(vectors[:, None], weight, bias, method.backbone)[:, 0], vectors, atol=1e-4, rtol=1e-4
    )


def test_adding_an_attribute_refits_no_other(method):
    history, values = users(600)
    alone = ClosedFormMaps(ATTRIBUTES, [("gender",)], WIDTH)
    user = torch.arange(len(history))
    points = sphere_points(method.backbone.user_vectors(history).detach(), method.backbone).detach()
    assert alone.fit(points, values, user, user % 4).keys() == {"gender"}
    torch.testing.assert_close(alone.weight[:3], method.pack.weight[:3])
    assert torch.equal(alone.weight[3:], torch.eye(WIDTH).repeat(4, 1, 1))


def test_state_round_trip(method):
    again = ClosedFormMaps(ATTRIBUTES, COMBINATIONS, WIDTH)
    again.load_state_dict(method.pack.state_dict())
    history, values = users(10)
    assert torch.equal(
        ClosedFormMethod(method.backbone, again).user_vectors(history, values), method.user_vectors(history, values)
    )
