"""All models: the same seed gives the same weights, a loaded state the same outputs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray.models.fairness_methods import EliminatorMethod
from mtrec_ray.models.two_tower import TwoTower
from tests.models.backbones import HISTORIES, KINDS, make_backbone
from tests.models.test_discriminators import make_discriminators, make_vectors
from tests.models.test_eliminators import VALUES, make_pack
from tests.models.test_two_tower import BLOCKS, make_model


def logits(model: TwoTower) -> Tensor:
    users, titles = (torch.randn(3, width, generator=torch.Generator().manual_seed(0)) for width in (5, 6))
    territory = torch.tensor([2, 0, 1])
    group = territory % model.config.num_groups
    return model.logits(model.user_vectors(users, group, territory), model.title_vectors(titles))


MODELS: dict[str, tuple[Callable[..., Any], Callable[[Any], Tensor]]] = {
    "eliminators": (
        make_pack,
        lambda p: EliminatorMethod(make_backbone("bert4rec"), p).user_vectors(HISTORIES, VALUES),
    ),
    "discriminators": (make_discriminators, lambda model: model(make_vectors())),
    **{kind: (partial(make_backbone, kind), lambda model: model.user_vectors(HISTORIES)) for kind in KINDS},
    **{block: (partial(make_model, block), logits) for block in BLOCKS},
}


@pytest.mark.parametrize("name", MODELS)
def test_same_seed_gives_the_same_weights_and_another_seed_others(name):
    one, same, other = (MODELS[name][0](seed=seed).state_dict() for seed in (0, 0, 1))
    for key, tensor in one.items():
        assert tensor.isfinite().all(), key
        assert torch.equal(tensor, same[key]), key
        drawn = tensor.unique().numel() > 2
        assert torch.equal(tensor, other[key]) == (not drawn), key


@pytest.mark.parametrize("name", MODELS)
def test_loaded_state_gives_the_same_outputs(name):
    make, outputs = MODELS[name]
    model, loaded = make(seed=0), make(seed=1)
    for tensor in model.state_dict().values():
        tensor.uniform_(0.1, 1.0)  # what starts as zero or one too
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(outputs(loaded), outputs(model))
