"""The fast path for float32 products is taken only where it stays float32."""

import pytest
import torch

from mtrec_ray.steps import precision


@pytest.fixture(autouse=True)
def _restore():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_what_it_says_is_what_is_set(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_float32_matmul_precision("highest")
    taken = precision.use_fast_matmul()
    assert torch.get_float32_matmul_precision() == ("medium" if taken else "highest")
    assert precision.matmul_error() <= precision.MAX_RELATIVE_ERROR


def test_a_processor_that_rounds_keeps_its_setting(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "matmul_error", lambda: 2e-3)
    torch.set_float32_matmul_precision("highest")
    assert not precision.use_fast_matmul()
    assert torch.get_float32_matmul_precision() == "highest"


def test_cuda_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.set_float32_matmul_precision("highest")
    assert not precision.use_fast_matmul()
    assert torch.get_float32_matmul_precision() == "highest"
