"""SASRec and BERT4Rec: shapes, filler, other rows, what a column sees, dropout, seeds."""

import pytest
import torch
from torch import nn

from mtrec_ray.models.sequential import ByteDropout, SequentialBackbone
from mtrec_ray.models.shapes import SequentialConfig
from tests.models.backbones import HISTORIES, NUM_TITLES, SHAPE, D, L, close, make_backbone


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_have_a_row_a_history_in_the_dtype_of_the_model(kind, dtype):
    backbone = make_backbone(kind).to(dtype)
    vectors, users, titles = backbone(HISTORIES), backbone.user_vectors(HISTORIES), backbone.title_vectors()
    assert vectors.shape == (3, L, D)
    assert users.shape == (3, D)
    assert titles.shape == (NUM_TITLES, D)  # without the mask token
    assert backbone.user_vectors(HISTORIES[:, None]).shape == (3, 1, D)
    assert backbone.num_columns == L + (kind == "bert4rec")
    assert {vectors.dtype, users.dtype, titles.dtype} == {dtype}


@pytest.mark.parametrize("shape", ["rows", "groups"])
def test_reading_some_columns_equals_taking_them_of_all(kind, shape):
    backbone = make_backbone(kind)
    read = torch.tensor([[0, 2], [5, 1], [0, 0]])
    expected = backbone(HISTORIES).gather(1, read[..., None].expand(-1, -1, D))
    if shape == "rows":
        close(backbone(HISTORIES, read=read), expected)
    else:
        close(backbone(HISTORIES[:, None], read=read[:, None])[:, 0], expected)


def test_cached_titles_change_nothing(kind):
    backbone, remembering = make_backbone(kind), make_backbone(kind).remember_titles()
    with torch.no_grad():
        remembering.get_parameter("layers.0.key_value.weight").fill_(torch.nan)
    close(remembering(HISTORIES), backbone(HISTORIES))
    close(remembering.user_vectors(HISTORIES[:, None]), backbone.user_vectors(HISTORIES[:, None]))
    assert remembering.state_dict().keys() == backbone.state_dict().keys()
    assert remembering.train()(HISTORIES).isnan().any()  # whose weights may change


def test_filler_and_other_rows_do_not_change_a_vector(kind):
    backbone = make_backbone(kind)
    vectors = backbone.user_vectors(HISTORIES)
    close(backbone.user_vectors(HISTORIES.flip(0)), vectors.flip(0))
    for row, vector in zip(HISTORIES, vectors, strict=True):
        close(backbone.user_vectors(row[None])[0], vector)
        close(backbone.user_vectors(row[row >= 0][None])[0], vector)
    close(backbone.user_vectors(HISTORIES[:, None])[:, 0], vectors)  # a history a group


def test_sasrec_reads_at_each_column_the_user_after_that_event():
    backbone, history = make_backbone("sasrec"), HISTORIES[1:2]
    columns = backbone(history)[0]  # (L, d)
    for column in range(L):
        close(columns[column], backbone.user_vectors(history[:, : column + 1])[0])


def test_bert4rec_reads_at_a_mask_token_behind_the_last_event():
    backbone = make_backbone("bert4rec")
    with_token = torch.tensor([[1, 2, 3, backbone.mask_token, -1, -1, -1]])
    close(backbone(with_token)[0, 3], backbone.user_vectors(HISTORIES[:1])[0])


def test_only_bert4rec_sees_later_events(kind):
    backbone, changed = make_backbone(kind), HISTORIES[1:2].clone()
    changed[0, 4] = 20
    moved = (backbone(changed) - backbone(HISTORIES[1:2]))[0].abs().amax(-1) > 1e-6  # (L,)
    assert moved.tolist() == ([True] * L if kind == "bert4rec" else [False] * 4 + [True] * 2)


def test_the_order_of_events_matters(kind):
    backbone = make_backbone(kind)
    swapped = HISTORIES[:1, [1, 0, 2, 3, 4, 5]]
    assert (backbone.user_vectors(swapped) - backbone.user_vectors(HISTORIES[:1])).abs().max() > 1e-3


def test_initial_weights_fill_every_parameter(kind):
    backbone = SequentialBackbone(SequentialConfig(num_titles=NUM_TITLES, kind=kind, **SHAPE))
    for parameter in backbone.parameters():
        nn.init.constant_(parameter, torch.nan)
    backbone.init_weights(torch.Generator().manual_seed(0))
    assert all(parameter.isfinite().all() for parameter in backbone.parameters())
    assert backbone.titles.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_dropout_drops_the_given_fraction_and_keeps_the_mean(p):
    torch.manual_seed(0)
    dropped = ByteDropout(p).train()(torch.ones(401, 499))  # no multiple of 8
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert len(dropped.unique()) == 2


def test_dropout_acts_in_training_alone_and_follows_the_seed():
    backbone = make_backbone("sasrec", dropout=0.2)
    assert torch.equal(backbone(HISTORIES), backbone(HISTORIES))
    backbone.train()
    torch.manual_seed(0)
    one, other = backbone(HISTORIES), backbone(HISTORIES)
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    assert torch.equal(backbone(HISTORIES), one)
    still = make_backbone("sasrec").train()
    assert torch.equal(still(HISTORIES), still.eval()(HISTORIES))
