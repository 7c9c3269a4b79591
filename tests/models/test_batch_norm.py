"""Pair-weighted batch normalisation equals `nn.BatchNorm1d` and ReLU on the repeated rows."""

import pytest
import torch
from torch import Tensor

from mtrec_ray.models import batch_norm
from mtrec_ray.models.batch_norm import Normalise, PairBatchNorm, PairCounts

WIDTH = 4
COUNTS = torch.tensor([2, 0, 1, 3, 1, 4, 2])


@pytest.fixture(autouse=True)
def _several_tiles(monkeypatch):
    monkeypatch.setattr(batch_norm, "TILE_ROWS", 3)


def make_norm() -> tuple[PairBatchNorm, torch.nn.BatchNorm1d]:
    """Ours and torch's in float64, with the same random parameters and statistics."""
    ours, torchs = PairBatchNorm(WIDTH).double(), torch.nn.BatchNorm1d(WIDTH, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.rand(WIDTH, generator=generator).double() + 0.5 for name in ours.state_dict()}
    ours.load_state_dict(state)
    torchs.load_state_dict({**state, "num_batches_tracked": torch.tensor(0)})
    return ours, torchs


def make_rows(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(len(COUNTS), WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()


def make_counts(dtype: torch.dtype = torch.float64) -> PairCounts:
    return PairCounts(COUNTS.to(dtype), COUNTS.sum().to(dtype))


def test_gradients_equal_finite_differences():
    norm, _ = make_norm()

    def outputs(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return Normalise.apply(rows, weight, bias, make_counts(), norm.eps)[0]

    assert torch.autograd.gradcheck(outputs, (make_rows(), norm.weight, norm.bias))


def test_equals_torch_on_repeated_rows():
    ours, torchs = make_norm()
    rows, same_rows = make_rows(), make_rows()
    gradient = torch.randn(int(COUNTS.sum()), WIDTH, dtype=torch.float64)
    outputs = ours(rows, make_counts()).repeat_interleave(COUNTS, 0)
    expected = torchs(same_rows.repeat_interleave(COUNTS, 0)).relu()
    outputs.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(rows.grad, same_rows.grad)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(ours, name).grad, getattr(torchs, name).grad)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, torchs.state_dict()[name])


def test_statistics_and_gradients_are_summed_over_workers():
    gradients = []
    for workers in (1, 2):
        norm, rows = make_norm()[0], make_rows()
        counts = PairCounts(COUNTS.double(), workers * COUNTS.sum().double(), lambda sums, w=workers: sums.mul_(w))
        norm(rows, counts).square().sum().backward()
        gradients.append((rows.grad, norm.weight.grad, norm.bias.grad, norm.running_mean))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_float32_is_accurate_at_a_mean_of_a_thousand_deviations():
    norm, rows = make_norm()[0].float(), make_rows(torch.float32).detach() + 1000
    outputs = norm(rows, make_counts(torch.float32))
    torch.testing.assert_close(outputs.double(), make_norm()[0](rows.double(), make_counts()), rtol=1e-3, atol=1e-3)


def test_no_pairs_leave_the_running_statistics():
    norm, (before, _) = make_norm()[0], make_norm()
    norm(torch.zeros(0, WIDTH).double(), PairCounts(torch.zeros(0).double(), torch.tensor(0.0).double()))
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before.state_dict()[name])


def test_inference_equals_torch():
    ours, torchs = make_norm()
    torch.testing.assert_close(ours(make_rows()), torchs.eval()(make_rows()).relu())
