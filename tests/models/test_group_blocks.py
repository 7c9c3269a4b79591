"""A group's parameters meet its own rows alone, in both directions: of grouped operations and of every block."""

from typing import get_args

import pytest
import torch

from mtrec_ray.models.group_blocks import (
    EVIDENCE,
    GROUP_BLOCKS,
    BlockShape,
    DenseBlock,
    GroupedLinear,
    HierarchicalBlock,
)
from mtrec_ray.models.shapes import GroupBlockName
from tests.processes import python

OFFSETS = (0, 3, 3, 5)  # group 1 is empty
GROUP_OF_ROW = (0, 0, 0, 2, 2)
TERRITORY = torch.tensor(GROUP_OF_ROW)
SHAPE = BlockShape(width=5, num_groups=3, discoveries=(40, 0, 600))


def make_block(name: GroupBlockName) -> tuple[DenseBlock, torch.Tensor]:
    """A float64 block with all parameters random, and its input."""
    generator = torch.Generator().manual_seed(0)
    block = GROUP_BLOCKS[name](SHAPE).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return block, torch.randn(OFFSETS[-1], SHAPE.width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", GROUP_BLOCKS)
def test_gradients_equal_finite_differences(name):
    block, users = make_block(name)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def outputs(rows: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (rows, OFFSETS, TERRITORY))

    assert torch.autograd.gradcheck(outputs, (users.requires_grad_(), *parameters))


@pytest.mark.parametrize("name", GROUP_BLOCKS)
@torch.no_grad()
def test_parameters_change_rows_of_their_group_alone(name):
    block, users = make_block(name)
    before = block(users, OFFSETS, TERRITORY)
    for parameter in block.parameters():
        parameter[2] += 1
    after = block(users, OFFSETS, TERRITORY)
    assert torch.equal(before[:3], after[:3])
    assert (before[3:] != after[3:]).any(1).all()


@pytest.mark.parametrize("name", GROUP_BLOCKS)
def test_gradient_comes_from_the_own_group(name):
    block, users = make_block(name)
    block(users, OFFSETS, TERRITORY).square().sum().backward()
    for parameter in block.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[1] == 0).all()
        assert parameter.grad[0].abs().sum() > 0


@torch.no_grad()
def test_a_territory_stays_nearer_to_its_group_the_fewer_discoveries_it_has():
    block, users = make_block("hierarchical")
    before = block(users, OFFSETS, TERRITORY)
    assert isinstance(block, HierarchicalBlock)
    block.shift.add_(1)
    moved = [count / (count + EVIDENCE) for count in (40, 40, 40, 600, 600)]
    expected = before + torch.tensor(moved, dtype=torch.float64)[:, None]
    torch.testing.assert_close(block(users, OFFSETS, TERRITORY), expected, rtol=1e-6, atol=1e-6)


def test_names_load_without_torch():
    assert python("import sys, mtrec_ray.models.shapes; print('torch' in sys.modules)").strip() == "False"
    assert set(GROUP_BLOCKS) == set(get_args(GroupBlockName))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_each_group_has_its_own_linear_map(with_bias, transposed):
    rows, bias = random(5, 4), random(3, 2) if with_bias else None
    weight = random(3, 4, 2).transpose(1, 2) if transposed else random(3, 2, 4)
    weight = weight.detach().requires_grad_()  # keeps the layout
    expected = torch.stack(
        [weight[g] @ row + (0 if bias is None else bias[g]) for row, g in zip(rows, GROUP_OF_ROW, strict=True)]
    )
    torch.testing.assert_close(GroupedLinear.apply(rows, weight, bias, OFFSETS, None), expected)
    inputs = (rows, weight) if bias is None else (rows, weight, bias)
    assert torch.autograd.gradcheck(lambda r, w, b=None: GroupedLinear.apply(r, w, b, OFFSETS, None), inputs)
