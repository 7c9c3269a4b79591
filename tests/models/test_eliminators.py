"""Eliminators: plain attention over prompts and history, packs, mixed batches, ablations; filters."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtrec_ray.combinations import Combination
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.models.fairness_methods import (
    EliminatorMethod,
    ExtendedEliminatorMethod,
    FilterMethod,
    FineTuningMethod,
)
from mtrec_ray.models.sequential import Layer, SequentialBackbone
from mtrec_ray.models.shapes import EliminatorConfig
from tests.models.backbones import HEADS, HISTORIES, LAYERS, D, L, close, make_backbone, perturb

ATTRIBUTES = {"gender": 2, "age": 3, "occupation": 4}
COMBINATIONS: list[Combination] = [chosen for size in (1, 2, 3) for chosen in combinations(ATTRIBUTES, size)]
SHAPES = {
    "all parts": EliminatorConfig(num_prompts=4, adapter_width=5),
    "without prompts": EliminatorConfig(num_prompts=0, adapter_width=5),
    "without personal": EliminatorConfig(num_prompts=4, personal_prompt=False, adapter_width=5),
    "without adapters": EliminatorConfig(num_prompts=4, adapter_width=0),
    "adapters alone": EliminatorConfig(num_prompts=0, personal_prompt=False, adapter_width=5),
}
VALUES = torch.tensor([[0, 2, 1], [-1, 1, -1], [1, -1, 3]])


def make_pack(
    shape: str = "all parts", combinations: list[Combination] = COMBINATIONS, seed: int = 7
) -> StackedEliminators:
    """As our method starts, float64."""
    pack = StackedEliminators(SHAPES[shape], ATTRIBUTES, combinations, D, LAYERS).double()
    pack.init_weights(seed)
    pack.close_gate()
    return pack


def moved_pack(shape: str = "all parts") -> StackedEliminators:
    pack = make_pack(shape)
    perturb(pack, torch.Generator().manual_seed(2), 0.3)
    return pack


def one_sequence(
    backbone: SequentialBackbone, pack: StackedEliminators, k: int, history: Tensor, values: Tensor
) -> Tensor:
    """(T,) real titles -> (T, d): prompts and history in one sequence, one softmax over both, adapters of eq. (2)."""
    rows = [pack.prompts[k]]
    if pack.config.personal_prompt:
        start = 0
        for value, size in zip(values.tolist(), ATTRIBUTES.values(), strict=True):
            rows.append(pack.personal[k, start + (size if value < 0 else value)][None])
            start += size + 1
    prompts = torch.cat(rows)  # (P, d)
    hidden = torch.cat([prompts, backbone.titles.weight[history] + backbone.positions[: len(history)]])
    num, total = len(prompts), len(hidden)
    sees = torch.ones(total, total, dtype=torch.bool)
    sees[:num, num:] = False  # prompts read each other alone
    to_prompts = torch.zeros(total, total, dtype=torch.float64)
    to_prompts[num:, :num] = 1
    if not backbone.bidirectional:
        sees[num:, num:] = torch.ones(len(history), len(history), dtype=torch.bool).tril()

    def adapted(rows: Tensor, adapter: int) -> Tensor:
        if not pack.config.adapter_width:
            return rows
        inner = F.layer_norm(rows @ pack.down[k, adapter], (pack.config.adapter_width,))
        return (inner * pack.norm_scale[k, adapter] + pack.norm_shift[k, adapter]) @ pack.up[k, adapter] + rows

    for number, layer in enumerate(backbone.layers):
        assert isinstance(layer, Layer)
        heads = []
        for query, key_value in zip(
            layer.query(hidden).chunk(HEADS, -1), layer.key_value(hidden).chunk(HEADS, -1), strict=True
        ):
            key, value = key_value.chunk(2, -1)  # (P + T, d / H)
            scores = query @ key.t() / (D / HEADS) ** 0.5 + pack.gate[k, number] * to_prompts
            heads.append(scores.masked_fill(~sees, -torch.inf).softmax(-1) @ value)
        hidden = adapted(layer.attention_norm(hidden + torch.cat(heads, -1)), 2 * number)
        inner = layer.contract(layer.activation(layer.expand(hidden)))
        hidden = adapted(layer.feed_forward_norm(hidden + inner), 2 * number + 1)
    return plain_transport(pack, k, hidden[num:], values)


def plain_transport(pack: StackedEliminators, k: int, vectors: Tensor, values: Tensor) -> Tensor:
    """(T, d), (m,) one user's values -> (T, d)."""
    gain, start = torch.zeros(pack.config.transport_units, dtype=torch.float64), 0
    for value, size in zip(values.tolist(), ATTRIBUTES.values(), strict=True):
        gain += pack.transport_gain[k, start + (size if value < 0 else value)]
        start += size + 1
    units = F.relu(vectors @ pack.transport_inner[k] + pack.transport_bias[k]) * gain
    return vectors - pack.transport_strength[k].item() * units @ pack.transport_outer[k]


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_over_prompts_equals_one_softmax_over_all(kind, shape):
    backbone, pack = make_backbone(kind), moved_pack(shape)
    vectors = backbone(HISTORIES, eliminators=pack.for_all(VALUES))  # (K, B, L, d)
    assert vectors.shape == (len(COMBINATIONS), len(HISTORIES), L, D)
    assert vectors.dtype == torch.float64
    for k in (0, 3, 6):
        for user, history in enumerate(HISTORIES):
            real = history[history >= 0]
            close(vectors[k, user, : len(real)], one_sequence(backbone, pack, k, real, VALUES[user]))


def test_user_vectors_are_read_behind_the_last_event(kind):
    backbone, pack = make_backbone(kind), moved_pack()
    vectors = backbone.user_vectors(HISTORIES, eliminators=pack.for_all(VALUES))  # (K, B, d)
    assert vectors.shape == (len(COMBINATIONS), len(HISTORIES), D)
    token = torch.tensor([backbone.mask_token] * backbone.bidirectional, dtype=torch.int64)
    for user, history in enumerate(HISTORIES):
        real = torch.cat([history[history >= 0], token])
        close(vectors[4, user], one_sequence(backbone, pack, 4, real, VALUES[user])[-1])


def test_filler_and_other_rows_do_not_change_a_vector(kind):
    method = EliminatorMethod(make_backbone(kind), moved_pack())
    together = method.user_vectors(HISTORIES, VALUES)  # (K, B, d)
    for user, history in enumerate(HISTORIES):
        alone = method.user_vectors(history[history >= 0][None], VALUES[user : user + 1])
        close(alone[:, 0], together[:, user])


@pytest.mark.parametrize("shape", SHAPES)
def test_mixed_batch_equals_each_row_under_its_own_combination(kind, shape):
    """Every user under every combination, all of them rows of one batch."""
    backbone, pack = make_backbone(kind), moved_pack(shape)
    num = len(COMBINATIONS)
    expected = backbone.user_vectors(HISTORIES, eliminators=pack.for_all(VALUES)).flatten(0, 1)  # (K B, d)
    wanted = torch.arange(num).repeat_interleave(len(HISTORIES))  # (K B,)
    histories, values = HISTORIES.repeat(num, 1), VALUES.repeat(num, 1)
    order = torch.randperm(len(wanted), generator=torch.Generator().manual_seed(0))
    mixed = backbone.user_vectors(
        histories[order][:, None], eliminators=pack.for_rows(wanted[order], values[order])
    )  # (K B, 1, d)
    close(mixed[:, 0], expected[order])


def test_pack_equals_its_members_which_differ(kind):
    backbone = make_backbone(kind)
    for name in ("prompts", "personal", "down"):
        assert not torch.equal(*make_pack().get_parameter(name)[:2]), name
    together = EliminatorMethod(backbone, make_pack()).user_vectors(HISTORIES, VALUES)
    for k, combination in enumerate(COMBINATIONS):
        alone = make_pack(combinations=[combination])
        for name, parameter in alone.named_parameters():
            assert torch.equal(parameter[0], make_pack().get_parameter(name)[k]), name
        close(EliminatorMethod(backbone, alone).user_vectors(HISTORIES, VALUES)[0], together[k])


def test_adapters_start_at_the_identity():
    backbone = make_backbone("sasrec")
    vectors = backbone(HISTORIES, eliminators=make_pack("adapters alone").for_all(VALUES))
    for of_combination in vectors:
        close(of_combination, backbone(HISTORIES))


def test_personal_prompts_follow_the_users_values_and_unknown_has_its_own():
    method = EliminatorMethod(make_backbone("sasrec"), moved_pack())
    same_history = HISTORIES[1:2].expand(4, -1)
    values = torch.tensor([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 0]])
    vectors = method.user_vectors(same_history, values)  # (K, 4, d)
    close(vectors[:, 0], vectors[:, 3])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (vectors[:, one] - vectors[:, other]).abs().amax(-1).min() > 1e-4
    pack = moved_pack("without personal")
    without = ExtendedEliminatorMethod(make_backbone("sasrec"), pack).vectors_before_transport(same_history, values)
    close(without[:, 0], without[:, 1])


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_reaches_every_part_and_not_the_backbone(kind, shape):
    method = EliminatorMethod(make_backbone(kind), moved_pack(shape))
    values = torch.tensor([[0, 2, 1], [-1, 1, -1], [1, -1, 3], [0, 0, 0], [0, 0, 2]])  # every value occurs
    histories = HISTORIES[[0, 1, 1, 1, 1]]
    method(histories, values).pow(3).sum().backward()
    for name, parameter in method.pack.named_parameters():
        if not parameter.numel() or (name == "gate" and shape == "adapters alone"):
            continue  # a part left out, and what acts on it
        if name.startswith("transport_"):
            assert parameter.grad is None  # fitted apart
            continue
        assert parameter.grad is not None, name
        assert (parameter.grad[..., None].flatten(2).abs().sum(-1) > 0).all(), name  # each row of each combination
    assert all(not p.requires_grad and p.grad is None for p in method.backbone.parameters())


def test_number_of_parameters_counts_one_eliminator():
    """10 prompts, 2 + 1 and 3 + 1 personal rows of 64; two adapters of 64 x 8 twice and a norm of 2 x 8; a gate; a
    map of 16 units in and out of 64, their biases, a gain for each of 7 values, and its strength."""
    pack = StackedEliminators(EliminatorConfig(), {"gender": 2, "age": 3}, [("gender",), ("age",)], 64)
    found = EliminatorMethod(make_backbone("sasrec"), pack).num_parameters()
    assert found == (10 + 3 + 4) * 64 + 2 * (2 * 64 * 8 + 2 * 8) + 1 + 2 * 64 * 16 + 16 + 7 * 16 + 1


@pytest.mark.parametrize(("method", "left"), [(ExtendedEliminatorMethod, 0.997), (EliminatorMethod, 1.0)])
def test_decay_affects_the_personal_prompts_of_our_method_alone(method, left):
    pack, before = moved_pack(), moved_pack()
    method(make_backbone("sasrec"), pack).after_step()
    for name, parameter in pack.named_parameters():
        close(parameter, before.get_parameter(name) * (left if name == "personal" else 1))


def test_packs_start_without_a_gate_and_do_not_train_it():
    pack = StackedEliminators(SHAPES["all parts"], ATTRIBUTES, COMBINATIONS, D, LAYERS)
    pack.init_weights(0)
    assert (pack.gate == 0).all()
    assert not pack.gate.requires_grad
    pack.close_gate()
    assert (pack.gate == -4).all()
    assert pack.gate.requires_grad


def test_a_combination_of_filters_is_the_mean_of_its_filters(kind):
    filtered = FilterMethod(make_backbone(kind).float(), ATTRIBUTES)
    filtered.init_weights(0)
    single = filtered.user_vectors(HISTORIES, VALUES)  # (m, B, d)
    assert filtered(HISTORIES, VALUES).shape == (3, 3, L, D)
    filtered.for_combinations([("gender", "occupation"), ("age",), tuple(ATTRIBUTES)])
    combined = filtered.user_vectors(HISTORIES, VALUES)
    for vectors, expected in zip(combined, ((single[0] + single[2]) / 2, single[1], single.mean(0)), strict=True):
        torch.testing.assert_close(vectors, expected)


def test_filters_of_one_attribute_ignore_the_others():
    one, all_of_them = (FilterMethod(make_backbone("sasrec").float(), names) for names in ({"age": 3}, ATTRIBUTES))
    for filtered in (one, all_of_them):
        filtered.init_weights(0)
    torch.testing.assert_close(one.user_vectors(HISTORIES, VALUES)[0], all_of_them.user_vectors(HISTORIES, VALUES)[1])


def test_fine_tuning_starts_as_a_separate_copy():
    backbone = make_backbone("sasrec")
    method = FineTuningMethod(backbone, ("gender",))
    close(method.user_vectors(HISTORIES, VALUES)[0], backbone.user_vectors(HISTORIES))
    own = {id(parameter) for parameter in method.parameters()}
    assert not own & {id(parameter) for parameter in backbone.parameters()}
