"""Fit closed-form maps to the train split's vectors, and measure what they cost."""

from collections.abc import Sequence

import numpy as np
import torch

from mtrec_ray.combinations import NONE, Combination, combination_name
from mtrec_ray.console import ProgressCallback
from mtrec_ray.hashing import mix
from mtrec_ray.models.closed_form import ClosedFormMethod, sphere_points
from mtrec_ray.models.value_maps import FOLDS
from mtrec_ray.process import prepare_process
from mtrec_ray.trainers.adversarial import EliminatorData, make_method
from mtrec_ray.trainers.backbone import stacked_metrics, vectors_in_chunks
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.trainer import Weights

MAPPED_EVENTS = 32  # last events that the histories end at, as those do that are served


def fit_closed_form(
    config: EliminatorsConfig,
    combinations: Sequence[Combination],
    data: EliminatorData,
    progress: ProgressCallback | None = None,
) -> Weights:
    """Tensors of `ClosedFormMaps`, and figures of the validation event by combination."""
    prepare_process(config.runner.cpus_per_worker)
    method = make_method(config, data.num_values, data.backbone, combinations)
    assert isinstance(method, ClosedFormMethod)
    prefixes, users, backbone = data.prefixes, data.users, data.backbone
    report = progress or (lambda *_: None)
    report("fitting maps", 0, 2)
    vectors = vectors_in_chunks(backbone.user_vectors, torch.from_numpy(prefixes.history))  # (S, d)
    fold = (mix(prefixes.keys, "value maps", config.seed) % np.uint64(FOLDS)).astype(np.int64)
    values, keys, folds = map(torch.from_numpy, (prefixes.attribute_index, prefixes.keys.view(np.int64), fold))
    of_attributes = method.pack.fit(sphere_points(vectors, backbone), values, keys, folds)
    report("fitting maps", 1, 2)
    history, values = torch.from_numpy(users.history), torch.from_numpy(users.attribute_index)
    plain = vectors_in_chunks(backbone.user_vectors, history)[None]
    moved = vectors_in_chunks(method.user_vectors, history, values)  # (K, U, d)
    names = [NONE, *map(combination_name, combinations)]
    metrics = stacked_metrics(users, torch.cat([plain, moved]), backbone.title_vectors())
    figures: dict[str, dict[str, float]] = {}
    for name, one in zip(names, metrics, strict=True):
        means = one.means()
        figures[name] = {"ndcg": means["ndcg"], "full_ndcg": means["full_ndcg"]}
    for name, found in of_attributes.items():
        figures.get(name, {}).update(found)  # where the attribute is a combination of its own
    report("fitting maps", 2, 2)
    return dict(method.own_parameters()), figures
