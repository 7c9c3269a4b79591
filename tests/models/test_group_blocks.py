"""Every block keeps one contract: a group's parameters meet its own rows alone, in both directions."""

import subprocess
import sys
from typing import get_args

import pytest
import torch

from mtrec_ray.models.group_blocks import GROUP_BLOCKS, GroupBlock
from mtrec_ray.models.shapes import GroupBlockName

OFFSETS = (0, 3, 3, 5)  # group 1 is empty
D = 5


def make_block(name: GroupBlockName) -> tuple[GroupBlock, torch.Tensor]:
    """A float64 block with all parameters random, and its input."""
    generator = torch.Generator().manual_seed(0)
    block = GROUP_BLOCKS[name](3, D).double()
    block.init_weights(generator)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return block, torch.randn(OFFSETS[-1], D, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", GROUP_BLOCKS)
def test_gradients_equal_finite_differences(name):
    block, users = make_block(name)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def outputs(rows: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (rows, OFFSETS))

    assert torch.autograd.gradcheck(outputs, (users.requires_grad_(), *parameters))


@pytest.mark.parametrize("name", GROUP_BLOCKS)
@torch.no_grad()
def test_parameters_change_rows_of_their_group_alone(name):
    block, users = make_block(name)
    before = block(users, OFFSETS)
    for parameter in block.parameters():
        parameter[2] += 1
    after = block(users, OFFSETS)
    assert torch.equal(before[:3], after[:3])
    assert (before[3:] != after[3:]).any(1).all()


@pytest.mark.parametrize("name", GROUP_BLOCKS)
def test_gradient_comes_from_the_own_group(name):
    block, users = make_block(name)
    block(users, OFFSETS).square().sum().backward()
    for parameter in block.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[1] == 0).all()
        assert parameter.grad[0].abs().sum() > 0


def test_names_load_without_torch():
    program = "import sys, mtrec_ray.models.shapes; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.strip() == "False"
    assert set(GROUP_BLOCKS) == set(get_args(GroupBlockName))
