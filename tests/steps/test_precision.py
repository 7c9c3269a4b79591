"""The fast path for float32 products is taken only where it stays float32."""

import pytest
import torch

from mtrec_ray.steps import precision


@pytest.fixture(autouse=True)
def _restore():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_result_equals_the_process_setting(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_float32_matmul_precision("highest")
    taken = precision.use_fast_matmul()
    assert torch.get_float32_matmul_precision() == ("medium" if taken else "highest")
    assert precision.matmul_error() <= precision.MAX_RELATIVE_ERROR


def test_setting_is_restored_where_products_are_rounded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "matmul_error", lambda: 2e-3)
    torch.set_float32_matmul_precision("highest")
    assert not precision.use_fast_matmul()
    assert torch.get_float32_matmul_precision() == "highest"


def test_setting_does_not_change_with_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.set_float32_matmul_precision("highest")
    assert not precision.use_fast_matmul()
    assert torch.get_float32_matmul_precision() == "highest"
