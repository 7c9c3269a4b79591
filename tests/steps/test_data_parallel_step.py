"""Several workers on parts of a batch equal one worker on the whole."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.steps.propensity import AllReduce, loss_and_gradients, train_step
from tests.steps.cases import BLOCKS, LockStep, gradients, make_batch, make_model, make_users, split_users

USERS = make_users(0, np.array([3, 0, 5, 2, 1, 0, 4, 3, 2, 6]), np.array([2, 0, 1, 2, 0, 1, 0, 2, 2, 1]))
HALVES = [slice(0, 4), slice(4, 10)]
ONE_EMPTY = [slice(0, 10), slice(10, 10), slice(10, 10)]


def run_workers(parts: list[slice], **settings):
    """One step of every worker in its own thread; their models, losses and the number of calls between them."""
    lock_step = LockStep(len(parts))
    shares = split_users(USERS, parts)
    models = [make_model(**settings) for _ in parts]

    def work(rank: int) -> float:
        batch = make_batch(shares[rank])
        return loss_and_gradients(models[rank], batch, all_reduce=lock_step.reducer(rank)).item()

    with ThreadPoolExecutor(len(parts)) as pool:
        losses = list(pool.map(work, range(len(parts))))
    return models, losses, lock_step.num_calls


@pytest.mark.parametrize("final_batch_norm", [True, False])
@pytest.mark.parametrize("group_block", BLOCKS)
@pytest.mark.parametrize("parts", [HALVES, ONE_EMPTY], ids=["halves", "two workers without rows"])
def test_workers_equal_one(parts, group_block, final_batch_norm):
    settings = {"group_block": group_block, "final_batch_norm": final_batch_norm}
    whole = make_model(**settings)
    loss = loss_and_gradients(whole, make_batch(USERS)).item()
    models, losses, num_calls = run_workers(parts, **settings)
    assert num_calls == (5 if final_batch_norm else 3)
    for model, worker_loss in zip(models, losses, strict=True):
        assert worker_loss == pytest.approx(loss, rel=1e-12)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, gradients(whole)[name], rtol=1e-10, atol=1e-13, msg=name)
        for buffer, expected in zip(model.buffers(), whole.buffers(), strict=True):
            torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-14)


def test_nobody_has_rows():
    """Loss 0, gradients 0, running statistics as they were."""
    models, losses, _ = run_workers([slice(10, 10), slice(10, 10)], group_block="dense")
    before = make_model(group_block="dense")
    assert losses == [0, 0]
    for model in models:
        assert all((gradient == 0).all() for gradient in gradients(model).values())
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before.buffers(), strict=True))


def test_several_steps_train_as_one():
    """Both workers keep the same parameters, those of one worker."""
    whole = make_model(group_block="dense")
    train(whole, USERS, None)
    lock_step = LockStep(2)
    models = [make_model(group_block="dense") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, models, split_users(USERS, HALVES), [lock_step.reducer(0), lock_step.reducer(1)]))
    for model in models:
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-9, atol=1e-12, msg=name)


def train(model: TwoTower, users: dict[str, np.ndarray], all_reduce: AllReduce | None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        train_step(model, optimizer, make_batch(users), all_reduce=all_reduce)
