"""Several workers on parts of a batch equal one worker on the whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.steps.propensity import loss_and_gradients
from mtrec_ray.workers import AllReduce, single_worker
from tests.steps.cases import (
    BLOCKS,
    ONE_HOT,
    gradients,
    in_lock_step,
    make_batch,
    make_model,
    make_users,
    split_users,
)

USERS = make_users(0, np.array([3, 0, 5, 2, 1, 0, 4, 3, 2, 6]), np.array([2, 0, 1, 2, 0, 1, 0, 2, 2, 1]))
HALVES = [slice(0, 4), slice(4, 10)]
ONE_EMPTY = [slice(0, 10), slice(10, 10)]


def run_workers(parts: list[slice], **settings):
    """One step of every worker in its own thread; their models, losses and the number of calls between them."""
    users, calls = split_users(USERS, parts), []

    def work(rank: int, all_reduce: AllReduce) -> tuple[TwoTower, float]:
        def counted(tensor: Tensor) -> Tensor:
            calls.append(rank)
            return all_reduce(tensor)

        model = make_model(**settings)
        return model, loss_and_gradients(model, make_batch(users[rank]), all_reduce=counted).item()

    models, losses = zip(*in_lock_step(work, len(parts)), strict=True)
    return models, losses, calls.count(0)


@pytest.mark.parametrize("settings", [{}, {"paper": True}, {"one_hot_of_territory": ONE_HOT}], ids=str)
@pytest.mark.parametrize("group_block", BLOCKS)
@pytest.mark.parametrize("parts", [HALVES, [*ONE_EMPTY, slice(10, 10)]], ids=["halves", "two workers without rows"])
def test_two_workers_equal_one(parts, group_block, settings):
    settings = settings | {"group_block": group_block}
    whole = make_model(**settings)
    loss = loss_and_gradients(whole, make_batch(USERS)).item()
    models, losses, num_calls = run_workers(parts, **settings)
    assert num_calls == (10 if "paper" in settings else 6)  # pairs, each norm's sums in both directions, gradients
    for model, worker_loss in zip(models, losses, strict=True):
        assert worker_loss == pytest.approx(loss, rel=1e-12)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, gradients(whole)[name], rtol=1e-10, atol=1e-13, msg=name)
        for buffer, expected in zip(model.buffers(), whole.buffers(), strict=True):
            torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-14)


def test_step_without_rows_has_loss_zero():
    models, losses, _ = run_workers([slice(10, 10), slice(10, 10)], group_block="dense")
    before = make_model(group_block="dense")
    assert losses == (0, 0)
    for model in models:
        assert all((gradient == 0).all() for gradient in gradients(model).values())
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before.buffers(), strict=True))


def test_gloo_processes_train_as_one(tmp_path):
    """Two processes, after three steps on halves and three where one has no rows, have the one worker's parameters."""
    expected = train(USERS, USERS, single_worker)
    spawn(gloo_worker, (tmp_path,), nprocs=2)
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def gloo_worker(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def all_reduce(tensor: Tensor) -> Tensor:
        torch.distributed.all_reduce(tensor)
        return tensor

    state = train(split_users(USERS, HALVES)[rank], split_users(USERS, ONE_EMPTY)[rank], all_reduce)
    torch.save(state, folder / f"{rank}.pt")


def train(first: dict[str, np.ndarray], then: dict[str, np.ndarray], all_reduce: AllReduce) -> dict[str, Tensor]:
    """State after three steps on each batch."""
    model: TwoTower = make_model(group_block="dense")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for users in [first] * 3 + [then] * 3:
        loss_and_gradients(model, make_batch(users), all_reduce=all_reduce)
        optimizer.step()
    return model.state_dict()
