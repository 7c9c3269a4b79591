"""Grouped operations equal a loop over the rows."""

import pytest
import torch
from torch import Tensor

from mtrec_ray.models.group_blocks import GroupedLinear, RepeatByGroup

OFFSETS = (0, 3, 3, 5)  # group 1 is empty
GROUP_OF_ROW = (0, 0, 0, 2, 2)


def random(*shape: int) -> Tensor:
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


def test_vector_of_a_group_is_repeated_for_its_rows():
    vectors = random(3, 4)
    torch.testing.assert_close(RepeatByGroup.apply(vectors, OFFSETS), vectors[list(GROUP_OF_ROW)])
    assert torch.autograd.gradcheck(lambda v: RepeatByGroup.apply(v, OFFSETS), (vectors,))
