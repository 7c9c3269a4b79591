"""Averaged weights: decay schedule, shared frozen weights, state."""

import pytest
import torch
from torch import nn

from mtrec_ray.models.training_state import averaged


def make_model() -> nn.Linear:
    """A frozen weight and a bias that moves."""
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 5.0)
    nn.init.constant_(model.bias, 0.0)
    model.weight.requires_grad_(False)
    return model


def biases(model: nn.Linear, average, values: list[float]) -> list[float]:
    """The average's bias after each update with a newest one."""
    found = []
    for value in values:
        nn.init.constant_(model.bias, value)
        average.update_parameters(model)
        found.append(average.module.bias.item())
    return found


def test_decay_grows_to_the_setting():
    """n / (n + 10) in update n, 1/11 first, until the setting is reached; starts at the initial weights."""
    model = make_model()
    expected, found = 0.0, biases(model, averaged(model, 0.15), [1.0, 2.0, 4.0])
    for newest, decay, value in zip([1.0, 2.0, 4.0], [1 / 11, 0.15, 0.15], found, strict=True):
        expected = decay * expected + (1 - decay) * newest
        assert value == pytest.approx(expected)
    assert model.bias.item() == 4


def test_decay_0_keeps_the_newest_weights():
    model = make_model()
    assert biases(model, averaged(model, 0.0), [3.0, 7.0]) == [3.0, 7.0]


def test_frozen_weights_are_shared_and_averages_need_no_gradient():
    model = make_model()
    average = averaged(model, 0.9)
    assert average.module.weight is model.weight
    assert not average.module.training
    assert not average.module.bias.requires_grad
    assert model.bias.requires_grad
    biases(model, average, [1.0])
    assert model.weight.item() == 5.0


def test_state_resumes_weights_and_decay():
    model = make_model()
    straight = averaged(model, 0.9)
    biases(model, straight, [1.0, 2.0])
    resumed = averaged(make_model(), 0.9)
    resumed.load_state_dict({name: tensor.clone() for name, tensor in straight.state_dict().items()})
    assert torch.equal(resumed.n_averaged, straight.n_averaged)
    assert biases(model, resumed, [4.0, 1.0]) == biases(model, straight, [4.0, 1.0])
