"""The adversarial step: gradients, what it moves, packs, workers, seeds, resume."""

import copy
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from mtrec_ray.combinations import Combination
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.models.fairness_methods import (
    EliminatorMethod,
    ExtendedEliminatorMethod,
    FairnessMethod,
    FilterMethod,
    FineTuningMethod,
)
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.shapes import EliminatorConfig
from mtrec_ray.models.training_state import collect_state, restore_state
from mtrec_ray.steps.adversary import AdversaryGame, adversary_columns
from mtrec_ray.steps.pretraining import Positions, positions_of
from mtrec_ray.workers import AllReduce, single_worker
from tests.models.backbones import LAYERS, NUM_TITLES, D, Kind, L, make_backbone
from tests.steps.cases import gradients, in_lock_step

B = 8
ATTRIBUTES = {"gender": 2, "age": 3, "occupation": 4}
COMBINATIONS: list[Combination] = [chosen for size in (1, 2, 3) for chosen in combinations(ATTRIBUTES, size)]
VALUE_COUNTS = [[9, 4], [1, 16, 4], [2, 2, 5, 7]]
SETTINGS: dict[str, Any] = {"weight": 1.0, "generator_lr": 1e-3, "averaging": 0.9, "class_power": 0.5}
ALL_COLUMNS: dict[str, Any] = {"columns": L + 1}  # nothing is left to draw


@dataclass(frozen=True)
class Batch:
    """What a step takes."""

    positions: Positions
    values: Tensor
    negatives: Tensor

    def part(self, rows: slice) -> "Batch":
        """A worker's part."""
        positions = Positions(self.positions.history[rows], self.positions.targets[rows])
        return Batch(positions, self.values[rows], self.negatives)


def make_method(kind: Kind, method: str, chosen: list[Combination], seed: int) -> FairnessMethod:
    if method == "fine_tuning":
        return FineTuningMethod(make_backbone(kind), chosen[-1])
    if method == "filter":
        filtered = FilterMethod(make_backbone(kind).float(), ATTRIBUTES)
        filtered.init_weights(seed)
        return filtered
    pack = StackedEliminators(EliminatorConfig(num_prompts=4, adapter_width=3), ATTRIBUTES, chosen, D, LAYERS).double()
    pack.init_weights(seed)
    if method == "pfrec":
        return EliminatorMethod(make_backbone(kind), pack)
    pack.close_gate()
    return ExtendedEliminatorMethod(make_backbone(kind), pack)


def make_game(
    kind: Kind,
    chosen: list[Combination] = COMBINATIONS,
    method: str = "eliminator",
    seed: int = 7,
    all_reduce: AllReduce = single_worker,
    **settings: Any,
) -> AdversaryGame:
    trained = make_method(kind, method, chosen, seed)
    return AdversaryGame(trained, ATTRIBUTES, VALUE_COUNTS, seed, all_reduce, **SETTINGS | settings)


def make_batch(backbone: SequentialBackbone, step: int) -> Batch:
    """Crops of all lengths and users of all values, some unknown; the step's number is the seed of all draws."""
    torch.manual_seed(step)
    titles = torch.randint(NUM_TITLES, (B, L + 1))
    real = torch.arange(L) < torch.tensor([6, 6, 6, 5, 3, 2, 1, 6])[:, None]
    history, targets = titles[:, :L].masked_fill(~real, -1), titles[:, 1:].masked_fill(~real, -1)
    values = torch.stack([torch.arange(B) % (size + 1) - 1 for size in ATTRIBUTES.values()], 1)  # (B, m)
    negatives = torch.randint(NUM_TITLES, (5,))
    return Batch(positions_of(backbone, history, targets, mask_fraction=0.3), values, negatives)


def train(game: AdversaryGame, steps: range) -> list[Tensor]:
    """What each step returns, concatenated."""
    returned = []
    for number in steps:
        batch = make_batch(game.method.backbone, number)
        returned.append(torch.cat(game.step(batch.positions, batch.values, batch.negatives)))
    return returned


def tuned(method: FairnessMethod) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}


def close(one: Tensor, other: Tensor, name: str = "") -> None:
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("method", ["eliminator", "fine_tuning"])
def test_gradients_are_those_of_equation_5(kind, method):
    """Discriminators learn from their cross entropies alone; the method from BPR less lambda times those after."""
    game = make_game(kind, method=method, weight=0.7, **ALL_COLUMNS)
    method, before = copy.deepcopy(game.method), copy.deepcopy(game.discriminators)
    batch = make_batch(method.backbone, 0)
    returned_bpr, returned_entropies = game.step(batch.positions, batch.values, batch.negatives)
    assert not any(returned.requires_grad for returned in (returned_bpr, returned_entropies))

    targets, rows = batch.positions.targets, batch.positions.rows
    vectors = method(batch.positions.history, batch.values)  # (K, B, T, d)
    seen, labels = vectors.flatten(1, 2)[:, rows], batch.values.repeat_interleave(targets.shape[1], 0)[rows]
    entropies = before.losses(seen.detach(), labels, game.value_weights)
    close(returned_entropies, entropies.detach())
    expected = torch.autograd.grad(entropies.sum(), list(before.parameters()))
    for gradient, (name, own) in zip(expected, gradients(game.discriminators).items(), strict=True):
        close(own, gradient, name)

    titles, after = method.backbone.titles, copy.deepcopy(game.discriminators).requires_grad_(False)
    scores = seen @ titles(batch.negatives).t() - (seen * titles(targets.flatten()[rows])).sum(-1, keepdim=True)
    bpr = F.softplus(scores).mean((1, 2))
    close(returned_bpr, bpr.detach())
    loss = (bpr.sum() - 0.7 * after.losses(seen, labels, game.value_weights).sum()).double()
    expected = torch.autograd.grad(loss, list(tuned(method).values()))
    for gradient, (name, own) in zip(expected, gradients(game.method).items(), strict=True):
        close(own, gradient, name)


def test_backbone_stays_bit_identical(kind):
    game = make_game(kind)
    train(game, range(6))
    before, after = make_backbone(kind).state_dict(), game.method.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(not p.requires_grad and p.grad is None for p in game.method.backbone.parameters())
    assert game.averaged.backbone.titles.weight is game.method.backbone.titles.weight  # shared, not averaged


def test_gradient_reaches_every_part_of_every_eliminator(kind):
    """The second step's: adapters start at the identity, which hides what is in front of them."""
    game = make_game(kind)
    start = {name: parameter.detach().clone() for name, parameter in tuned(game.method).items()}
    train(game, range(2))
    assert all(name.startswith("pack.") for name in start)
    for name, parameter in tuned(game.method).items():
        assert parameter.grad is not None, name
        assert (parameter.grad[..., None].flatten(2).abs().sum(-1) > 0).all(), name  # each row of each combination
        assert not torch.equal(parameter, start[name]), name
    for name, parameter in game.discriminators.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert (parameter.grad.flatten(1).abs().sum(1) > 0).all(), name


def test_a_pack_equals_its_members_trained_one_by_one(kind):
    together = make_game(kind)
    returned = train(together, range(5))
    start = 0
    for k, combination in enumerate(COMBINATIONS):
        alone = make_game(kind, [combination])
        stop = start + len(combination)
        for of_pack, of_member in zip(returned, train(alone, range(5)), strict=True):
            close(of_pack[[k, *range(7 + start, 7 + stop)]], of_member)
        for pack, member in ((together.method, alone.method), (together.averaged, alone.averaged)):
            for name, parameter in member.named_parameters():
                if name.startswith("pack."):
                    close(pack.get_parameter(name)[k], parameter[0], name)
        for name, parameter in alone.discriminators.named_parameters():
            close(together.discriminators.get_parameter(name)[start:stop], parameter, name)
        start = stop


@pytest.mark.parametrize("cut", [B // 2, 0], ids=["halves", "a worker without crops"])
def test_two_workers_train_as_one(kind, cut):
    single = make_game(kind, **ALL_COLUMNS)
    returned = train(single, range(3))
    batches = [make_batch(single.method.backbone, step) for step in range(3)]

    def work(rank: int, all_reduce: AllReduce) -> tuple[AdversaryGame, list[Tensor]]:
        game = make_game(kind, all_reduce=all_reduce, **ALL_COLUMNS)
        parts = [batch.part((slice(0, cut), slice(cut, B))[rank]) for batch in batches]
        return game, [torch.cat(game.step(part.positions, part.values, part.negatives)) for part in parts]

    for game, its_returned in in_lock_step(work):
        for one, other in zip(its_returned, returned, strict=True):
            close(one, other)
        for name, tensor in collect_state(game.parts()).items():
            close(tensor, collect_state(single.parts())[name], name)


def test_users_of_unknown_values_affect_accuracy_alone():
    """Cross entropies stay when they change; BPR does not."""
    game, other = (make_game("sasrec", **ALL_COLUMNS) for _ in range(2))
    batch = make_batch(game.method.backbone, 0)
    values = batch.values.clone()
    values[3] = -1
    history = batch.positions.history.clone()
    history[3, 0] = (history[3, 0] + 1) % NUM_TITLES
    bpr, entropies = game.step(batch.positions, values, batch.negatives)
    changed = replace(batch.positions, history=history)
    other_bpr, other_entropies = other.step(changed, values, batch.negatives)
    close(entropies, other_entropies)
    assert ((bpr - other_bpr).abs() > 1e-9).all()


def test_without_known_values_it_trains_for_accuracy_alone():
    batch = make_batch(make_backbone("sasrec"), 0)
    states = []
    for weight in (0.0, 5.0):
        game = make_game("sasrec", weight=weight, **ALL_COLUMNS)
        _, entropies = game.step(batch.positions, torch.full_like(batch.values, -1), batch.negatives)
        assert (entropies == 0).all()
        states.append(tuned(game.method))
    for name, parameter in states[0].items():
        assert parameter.isfinite().all(), name
        close(parameter, states[1][name], name)


def test_discriminators_move_alone_where_the_generator_waits(kind):
    """What they learn and what is returned is the same."""
    waiting, moving = make_game(kind), make_game(kind)
    before = {name: parameter.detach().clone() for name, parameter in tuned(waiting.method).items()}
    batch = make_batch(waiting.method.backbone, 0)
    returned = []
    for game in (waiting, moving):
        torch.manual_seed(0)
        inputs = batch.positions, batch.values, batch.negatives
        returned.append(torch.cat(game.step(*inputs, move_generator=game is moving)))
    assert torch.equal(*returned)
    for name, parameter in waiting.discriminators.named_parameters():
        assert torch.equal(parameter, moving.discriminators.get_parameter(name)), name
    for part in (waiting.method, waiting.averaged):
        assert all(torch.equal(part.get_parameter(name), tensor) for name, tensor in before.items())


def test_overfits_one_batch(kind):
    """With lambda 0 the eliminator fits its targets and the discriminators fit the values."""
    game = make_game(kind, [("gender", "age")], weight=0.0, generator_lr=3e-3, discriminator_lr=1e-2)
    batch = make_batch(game.method.backbone, 0)
    returned = []
    for _ in range(70):
        torch.manual_seed(0)
        returned.append(torch.cat(game.step(batch.positions, batch.values, batch.negatives)))
    lowest = torch.stack(returned[-10:]).amin(0)  # RMSprop's steps do not shrink: a loss may jump at the end
    assert (lowest < 0.2 * returned[0]).all()


def test_hiding_works_against_the_discriminators():
    """Lambda 3 leaves them much less to read than lambda 0, on the same batch."""
    losses = []
    for weight in (0.0, 3.0):
        game = make_game("sasrec", [("gender",)], weight=weight, discriminator_lr=1e-2)
        batch = make_batch(game.method.backbone, 0)
        for _ in range(50):
            torch.manual_seed(0)
            _, entropies = game.step(batch.positions, batch.values, batch.negatives)
        losses.append(entropies.item())
    assert losses[1] > 0.4 > 0.1 > losses[0]


def test_same_seed_gives_the_same_losses(kind):
    one, same, other = make_game(kind), make_game(kind), make_game(kind, seed=8)
    returned = [train(game, range(3)) for game in (one, same, other)]
    assert all(torch.equal(a, b) for a, b in zip(returned[0], returned[1], strict=True))
    assert not torch.equal(returned[0][0], returned[2][0])
    assert all(
        torch.equal(tensor, collect_state(same.parts())[name]) for name, tensor in collect_state(one.parts()).items()
    )


@pytest.mark.parametrize(("method", "done"), [("eliminator", 0), ("eliminator", 3), ("filter", 3), ("fine_tuning", 3)])
def test_resume_from_state_equals_a_straight_run(method, done, tmp_path):
    straight = make_game("bert4rec", method=method)
    train(straight, range(done))
    safetensors.torch.save_file(collect_state(straight.parts()), tmp_path / "game.safetensors")
    resumed = make_game("bert4rec", method=method, seed=8)
    restore_state(resumed.parts(), safetensors.torch.load_file(tmp_path / "game.safetensors"))
    for one, other in zip(train(straight, range(done, done + 3)), train(resumed, range(done, done + 3)), strict=True):
        assert torch.equal(one, other)
    state = collect_state(resumed.parts())
    assert state.keys() == collect_state(straight.parts()).keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in collect_state(straight.parts()).items())


@pytest.mark.parametrize("method", ["filter", "fine_tuning"])
def test_baselines_train_by_the_same_step(kind, method):
    game = make_game(kind, method=method)
    before = {name: parameter.detach().clone() for name, parameter in game.method.named_parameters()}
    returned = train(game, range(3))
    num, pairs = (3, 3) if method == "filter" else (1, 3)
    assert returned[0].shape == (num + pairs,)
    for name, parameter in game.method.named_parameters():
        if name.startswith("backbone.") and method == "filter":
            assert parameter.grad is None, name
            assert torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
            assert not torch.equal(parameter, before[name]), name
    averages = dict(game.averaged.named_parameters())
    assert all(not torch.equal(averages[name], p) for name, p in tuned(game.method).items())


@pytest.mark.parametrize("columns", [1, 2, 4, 10])
def test_the_adversary_sees_the_last_column_and_random_others(columns):
    batch = make_batch(make_backbone("sasrec"), 0)
    targets = batch.positions.targets
    last = (targets >= 0).sum(1) - 1
    drawn = set()
    for seed in range(80):
        torch.manual_seed(seed)
        flat, crop = adversary_columns(batch.positions, columns)
        assert (targets.flatten()[flat] >= 0).all()
        assert torch.equal(flat // L, crop)
        assert len(set(flat.tolist())) == len(flat)
        assert torch.bincount(crop, minlength=B).tolist() == (last + 1).clamp(max=columns).tolist()
        assert set((last + torch.arange(B) * L).tolist()) <= set(flat.tolist())
        drawn |= set(flat.tolist())
    assert len(drawn) == (B if columns == 1 else (targets >= 0).sum())  # every column is drawn


def test_crop_without_a_target_is_not_seen():
    targets = torch.tensor([[-1, -1], [4, -1]])
    flat, crop = adversary_columns(Positions(targets, targets), 2)
    assert (flat.tolist(), crop.tolist()) == ([2], [1])
