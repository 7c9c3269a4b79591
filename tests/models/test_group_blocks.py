"""Every block keeps one contract: own rows for own parameters, and a backward that is the forward's derivative."""

import pytest
import torch

from mtrec_ray.models.group_blocks import GROUP_BLOCKS, GroupBlock

OFFSETS = (0, 3, 3, 5)  # group 1 is empty
D = 20


def make_block(name: str) -> tuple[GroupBlock, torch.Tensor, torch.Tensor]:
    """A float64 block with all parameters random, its input and its output's gradient."""
    generator = torch.Generator().manual_seed(0)
    block = GROUP_BLOCKS[name](3, D).double().requires_grad_(False)
    block.init_weights(generator)
    for parameter in block.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        parameter.grad = torch.full_like(parameter, torch.nan)
    users, gradient = torch.randn(2, OFFSETS[-1], D, generator=generator, dtype=torch.float64)
    return block, users, gradient


@pytest.mark.parametrize("name", GROUP_BLOCKS)
def test_backward_is_the_derivative(name):
    block, users, output_gradient = make_block(name)
    input_gradient = block.backward(users, output_gradient, OFFSETS)
    for tensor, gradient in [(users, input_gradient), *((p, p.grad) for p in block.parameters())]:
        direction, start = torch.randn_like(tensor), tensor.clone()
        values = []
        for sign in (1, -1):
            tensor.copy_(start + sign * 1e-6 * direction)
            values.append((block(users, OFFSETS) * output_gradient).sum())
        tensor.copy_(start)
        slope = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", GROUP_BLOCKS)
def test_a_group_part_moves_its_own_rows_alone(name):
    block, users, _ = make_block(name)
    before = block(users, OFFSETS)
    for parameter in block.parameters():
        parameter[2] += 1
    after = block(users, OFFSETS)
    assert torch.equal(before[:3], after[:3])
    assert (before[3:] != after[3:]).any(1).all()


@pytest.mark.parametrize("name", GROUP_BLOCKS)
def test_gradient_comes_from_the_own_group(name):
    block, users, output_gradient = make_block(name)
    block.backward(users, output_gradient, OFFSETS)
    for parameter in block.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[1] == 0).all()
        assert parameter.grad[0].abs().sum() > 0


@pytest.mark.parametrize("name", GROUP_BLOCKS)
def test_given_memory_is_used(name):
    block, users, output_gradient = make_block(name)
    out = torch.empty_like(users)
    assert block(users, OFFSETS, out=out) is out
    assert torch.equal(out, block(users, OFFSETS))
    expected = block.backward(users, output_gradient, OFFSETS)
    assert torch.equal(block.backward(users, output_gradient, OFFSETS, out=out), expected)
