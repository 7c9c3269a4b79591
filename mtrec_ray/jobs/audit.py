"""`mtrec audit`: what each eliminator hides, what it keeps readable, and what it costs.

1. `load_done`: the run, what it is compared with, and their backbone
2. `_read_users`:      users with their test event, of all buckets
3. `_represent`:       every user's vector and top-10 list, by the backbone and by each combination
4. `attack`:           one Ray task for each representation and attribute, on the users kept for attackers
5. `jobs.audit_report` makes tables and flat keys
"""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from mtrec_ray.combinations import NONE, combination_name
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.audit import Attribute, AuditSettings, audit_vectors, check_users
from mtrec_ray.evaluation.audit_result import AuditResult
from mtrec_ray.evaluation.list_attack import audit_lists
from mtrec_ray.evaluation.next_title import NextTitleMetrics
from mtrec_ray.files import check_writable
from mtrec_ray.jobs.audit_config import AuditConfig
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.fairness_methods import FairnessMethod, FilterMethod
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.held_out import HeldOutUsers, read_held_out
from mtrec_ray.streams.sequences import TEST_EVENT, SequenceConfig
from mtrec_ray.trainers.accuracy import held_out_metrics, vectors_in_chunks
from mtrec_ray.training.backbone_run import load_backbone
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_methods

logger = logging.getLogger(__name__)

LIST_LENGTH = 10


@dataclass(frozen=True)
class Represented:
    """Users as one model sees them."""

    hidden: tuple[str, ...]
    """Attributes that the model is to hide."""
    vectors: np.ndarray
    """(U, d) float32."""
    lists: np.ndarray
    """(U, 10) int64 titles of their territory that they have not watched, best first, -1 where no more are left."""
    metrics: NextTitleMetrics


@dataclass(frozen=True)
class Audit:
    """Results of one audit; representations are named `COMBINATION`, those of compared runs `RUN/COMBINATION`."""

    record: EliminatorsRecord
    users: HeldOutUsers
    represented: dict[str, Represented]
    attributes: list[str]
    """Those that could be attacked."""
    from_vectors: dict[tuple[str, str], AuditResult]
    """(representation, attribute)."""
    from_lists: dict[tuple[str, str], AuditResult]
    num_parameters: dict[str, int]
    """Of the backbone and of one combination of each run."""


def audit(config: AuditConfig, progress: ProgressCallback | None = None) -> Audit:
    """Audit a run of eliminators.

    Raises:
        UserError: an unfinished run, runs of different backbones or of one name, a lake or backbone changed since,
            too few users to attack, or a place that cannot be written to.
    """
    records = [EliminatorsRecord.load_done(uri) for uri in [config.run, *config.compare]]
    record, source = records[0], records[0].source()
    _check_names(records)
    _check_combinations(records)
    if {other.backbone_hash for other in records} != {record.backbone_hash}:
        raise UserError("the runs stand on different backbones: they cannot be compared")
    lake = record.open_lake(source.config.lake)
    backbone = load_backbone(source, record.backbone_hash)
    settings = AuditSettings(
        num_folds=config.num_folds,
        cross_fit=config.cross_fit,
        num_repeats=config.num_repeats,
        num_permutations=config.num_permutations,
        num_bootstrap=config.num_bootstrap,
        max_train_users=config.max_train_users,
        seed=config.seed,
    )
    users = _read_users(lake, source.config.sequences, source.config.model.history, config.max_users, progress)
    attacked = users.only(users.audit_split)
    attributes = _attributes(records, attacked, settings)
    if config.out:
        check_writable(config.out)
    offered = Catalogue.of(lake, *lake.manifest.calendar.day_bounds(0)).offer_mask
    represented = _represent(records, backbone, users, offered, progress)
    vectors = {name: one.vectors[users.audit_split] for name, one in represented.items()}
    lists = {name: one.lists[users.audit_split] for name, one in represented.items()} if config.lists else {}
    pairs = [
        (kind, name, attribute)
        for kind, found in (("vectors", vectors), ("lists", lists))
        for name in found
        for attribute in attributes
    ]
    shared = (vectors, lists, attributes, attacked.keys, source.num_titles, settings)
    results = dict(map_tasks(attack, pairs, *shared, stage="attacks", progress=progress))
    return Audit(
        record=record,
        users=users,
        represented=represented,
        attributes=list(attributes),
        from_vectors={(n, a): results[kind, n, a] for kind, n, a in pairs if kind == "vectors"},
        from_lists={(n, a): results[kind, n, a] for kind, n, a in pairs if kind == "lists"},
        num_parameters=_num_parameters(records, backbone),
    )


def attack(
    pair: tuple[str, str, str],
    vectors: dict[str, np.ndarray],
    lists: dict[str, np.ndarray],
    attributes: dict[str, Attribute],
    keys: np.ndarray,
    num_titles: int,
    settings: AuditSettings,
) -> AuditResult:
    """One (kind, representation, attribute)."""
    kind, name, of = pair
    torch.set_num_threads(1)
    if kind == "vectors":
        return audit_vectors({name: vectors[name]}, {of: attributes[of]}, keys, settings)[name, of]
    once = replace(settings, num_repeats=1)  # four times, MovieLens' lists took over 4 minutes more
    return audit_lists({name: lists[name]}, {of: attributes[of]}, keys, num_titles, once)[name, of]


def _check_names(records: list[EliminatorsRecord]) -> None:
    """Tables and keys name representations by their runs, those of the first run by its combinations alone."""
    names = [record.config.name for record in records]
    taken = {NONE, *map(combination_name, records[0].combinations)}
    for number, name in enumerate(names):
        if names.count(name) > 1 or name == "backbone" or (number > 0 and name in taken):
            raise UserError(f"compare: a run named {name!r} cannot be told apart in the tables: rename its folder")


def _check_combinations(records: list[EliminatorsRecord]) -> None:
    """Filters are used for whatever combinations the audited run has."""
    for other in records[1:]:
        trained = {name for combination in other.combinations for name in combination}
        if other.config.method == "filter" and not any(set(one) <= trained for one in records[0].combinations):
            asked = ", ".join(map(combination_name, records[0].combinations))
            raise UserError(
                f"compare: filters of {', '.join(sorted(trained))} in {other.config.name!r} make no combination of "
                f"{records[0].config.name!r} ({asked}): train filters of its attributes"
            )


def _read_users(
    lake: Lake, sequences: SequenceConfig, length: int, max_users: int, progress: ProgressCallback | None
) -> HeldOutUsers:
    """At most about `max_users` users with their test event, in the order of the buckets."""
    buckets = range(lake.manifest.num_buckets)
    fraction = min(1.0, max_users / max(1, lake.manifest.counts["users"]))
    shared = (lake, sequences, length, fraction)
    found = dict(map_tasks(_read_bucket, buckets, *shared, stage="reading users", progress=progress))
    return HeldOutUsers.concatenate([found[bucket] for bucket in buckets])


def _read_bucket(bucket: int, lake: Lake, sequences: SequenceConfig, length: int, fraction: float) -> HeldOutUsers:
    return read_held_out(lake, sequences, TEST_EVENT, length, [bucket], fraction)


def _attributes(records: list[EliminatorsRecord], users: HeldOutUsers, settings: AuditSettings) -> dict[str, Attribute]:
    """Values of the attributes that can be attacked; UserError where one that is to be hidden cannot."""
    hidden = {name for record in records for combination in record.combinations for name in combination}
    found = {}
    for a, (name, values) in enumerate(records[0].attributes.items()):
        if len(values) < 2:
            logger.warning("%s is not attacked: it has one value only", name)
            continue
        attribute = Attribute(users.attribute_index[:, a], len(values))
        try:
            check_users(name, attribute, users.keys, len(users), settings)
        except ValueError as error:
            if name in hidden:
                fix = "keep more users for attackers (sequences.audit_fraction), or train without this attribute"
                raise UserError(f"{error}: {fix}") from error
            logger.warning("%s is not attacked: %s", name, error)
            continue
        found[name] = attribute
    return found


def _represent(
    records: list[EliminatorsRecord],
    backbone: SequentialBackbone,
    users: HeldOutUsers,
    offered: np.ndarray,
    progress: ProgressCallback | None,
) -> dict[str, Represented]:
    """Every model's view of the users; `offered`: (territories, N) bool."""
    history, values = torch.from_numpy(users.history), torch.from_numpy(users.attribute_index)
    vectors = vectors_in_chunks(backbone.user_vectors, history)
    found = {NONE: _one((), users, vectors, backbone.title_vectors(), offered)}
    for number, record in enumerate(records):
        prefix = "" if number == 0 else f"{record.config.name}/"
        for method in _candidates(record, backbone, records[0].combinations):
            vectors = vectors_in_chunks(method.user_vectors, history, values)  # (K, U, d)
            for k, combination in enumerate(method.combinations):
                name = prefix + combination_name(combination)
                found[name] = _one(combination, users, vectors[k], method.backbone.title_vectors(), offered)
        if progress:
            progress("representing users", number + 1, len(records))
    return found


def _candidates(
    record: EliminatorsRecord, backbone: SequentialBackbone, combinations: list[tuple[str, ...]]
) -> list[FairnessMethod]:
    methods = load_methods(record, backbone)
    for method in methods:
        if isinstance(method, FilterMethod):  # trained one by one, used for any combination
            method.for_combinations([c for c in combinations if set(c) <= set(method.attributes)])
    return methods


def _one(
    hidden: tuple[str, ...],
    users: HeldOutUsers,
    vectors: torch.Tensor,
    title_vectors: torch.Tensor,
    offered: np.ndarray,
) -> Represented:
    lists = []
    for rows, seen in users.chunks(len(title_vectors)):
        never = torch.from_numpy(seen | ~offered[users.territory[rows]])
        best = (
            (vectors[rows] @ title_vectors.t()).masked_fill_(never, -torch.inf).topk(min(LIST_LENGTH, never.shape[1]))
        )
        lists.append(best.indices.masked_fill_(best.values == -torch.inf, -1).numpy())
    metrics = held_out_metrics(users, vectors, title_vectors)
    return Represented(hidden, vectors.numpy(), np.concatenate(lists), metrics)


def _num_parameters(records: list[EliminatorsRecord], backbone: SequentialBackbone) -> dict[str, int]:
    counts = {"backbone": sum(parameter.numel() for parameter in backbone.parameters())}
    return counts | {record.config.name: load_methods(record, backbone)[0].num_parameters() for record in records}
