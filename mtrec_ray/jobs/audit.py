"""`mtrec audit`: what each eliminator hides, what still leaks, and the cost in accuracy.

1. load the run, the runs it is compared with, and their backbone
2. `_read_users`: users with their test event, of all buckets
3. `_represent`:  every user's vector and top-10 lists, by the backbone and by each combination
4. `attack`:      one Ray task per representation and attribute, on the users of the audit split

Lists are attacked twice: with the titles that a user has watched kept in, and left out, as they are served. A list of
popular titles less those that each user has watched shows how much leaving out tells by itself. Vectors are attacked
once more by attackers who have those of many histories of each labelled person: they find values that a map writes.
"""

import logging
from dataclasses import replace

import numpy as np
import torch

from mtrec_ray.columns import concatenate_rows
from mtrec_ray.combinations import NONE, Combination, combination_name
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.attackers import LIST_ATTACKERS, bag_of_titles
from mtrec_ray.evaluation.audit import (
    AttributeLabels,
    AuditSettings,
    audit_histories,
    audit_inputs,
    audit_vectors,
    check_users,
)
from mtrec_ray.evaluation.audit_metrics import AuditResult
from mtrec_ray.evaluation.history_attacker import EVENTS_BETWEEN, HISTORIES_PER_USER, MAX_HISTORY_USERS
from mtrec_ray.files import check_writable
from mtrec_ray.jobs.audit_report import Audit, EventWindow, UserRepresentations
from mtrec_ray.jobs.audit_tables import HISTORIES, LISTS_KEPT, LISTS_LEFT_OUT, POPULARITY, VECTORS
from mtrec_ray.jobs.config import AuditConfig
from mtrec_ray.lake.bucket import Catalogue
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.fairness_methods import FilterMethod
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.reports.card import write_card
from mtrec_ray.streams.recent_histories import RecentHistories, read_recent_histories
from mtrec_ray.streams.sequences import TEST_EVENT, HeldOutUsers, SequenceConfig, read_held_out
from mtrec_ray.trainers.backbone import held_out_metrics, vectors_in_chunks
from mtrec_ray.training.backbone_run import load_backbone
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_methods

logger = logging.getLogger(__name__)

LIST_LENGTH = 10


def audit(config: AuditConfig, progress: ProgressCallback | None = None) -> Audit:
    """Audit a run of eliminators; write the result to `config.out` if given.

    UserError for an unfinished run, runs of different backbones or of one name, a lake or backbone changed since, too
    few users to attack, or an output folder that cannot be written to.
    """
    records = [EliminatorsRecord.load_done(uri) for uri in [config.run, *config.compare]]
    record, source = records[0], records[0].source()
    check_comparable(records)
    lake = record.open_lake(source.config.lake)
    backbone = load_backbone(source, record.backbone_hash)
    read = _read_users(lake, source.config.sequences, source.config.model.history, config, progress)
    users, window, recent = read
    audit_users = users.only(users.audit_split)
    num_repeats = AuditSettings.repeats_for(len(audit_users))
    settings = AuditSettings(config.num_folds, num_repeats, config.num_permutations, seed=config.seed)
    labels, not_attacked = _labels(records, audit_users, settings)
    in_recent = np.isin(audit_users.keys, recent.keys)
    assert (audit_users.keys[in_recent] == recent.keys).all()  # both in the order of the lake
    labels_of_recent, too_few = _labels_of_some(labels, audit_users.keys, in_recent, settings)
    if config.out:
        check_writable(config.out)
    offered = Catalogue.of(lake, *lake.manifest.calendar.day_bounds(0)).offer_mask
    representations = _represent(records, backbone, users, recent, offered, progress)
    inputs = {VECTORS: {name: one.vectors[users.audit_split] for name, one in representations.items()}}
    if labels_of_recent:
        inputs[HISTORIES] = {name: one.history_vectors for name, one in representations.items()}
    if config.lists:
        inputs[LISTS_KEPT] = {name: one.lists_kept[users.audit_split] for name, one in representations.items()}
    if config.lists and source.config.sequences.exclude_seen:
        inputs[LISTS_LEFT_OUT] = {name: one.lists_left_out[users.audit_split] for name, one in representations.items()}
        inputs[LISTS_LEFT_OUT][POPULARITY] = popular_lists(users, offered)[users.audit_split]
    of_kind = dict.fromkeys(inputs, (labels, audit_users.keys)) | {HISTORIES: (labels_of_recent, recent.keys)}
    targets = [(kind, name, a) for kind, found in inputs.items() for name in found for a in of_kind[kind][0]]
    arguments = (inputs, of_kind, source.num_titles, settings)
    results = dict(map_tasks(attack, targets, *arguments, stage="attacks", progress=progress))
    num_parameters = {"backbone": sum(parameter.numel() for parameter in backbone.parameters())}
    num_parameters |= {other.config.name: load_methods(other, backbone)[0].num_parameters() for other in records}
    audited = Audit(
        record=record,
        users=users,
        window=window,
        representations=representations,
        attributes=list(labels),
        not_attacked=not_attacked,
        not_attacked_by_histories=too_few,
        leakage={target: results[target] for target in targets},
        num_parameters=num_parameters,
        settings=settings,
    )
    if config.out:
        audited.write(config.out)
    if config.card:
        write_card(config.card, audited.document())
    return audited


def attack(
    target: tuple[str, str, str],
    inputs: dict[str, dict[str, np.ndarray]],
    labels_and_keys: dict[str, tuple[dict[str, AttributeLabels], np.ndarray]],
    num_titles: int,
    settings: AuditSettings,
) -> AuditResult:
    """Attack one target: (kind of input, representation, attribute)."""
    kind, name, attribute = target
    labels, keys = labels_and_keys[kind]
    torch.set_num_threads(1)
    if kind == VECTORS:
        return audit_vectors(inputs[kind][name], labels[attribute], keys, settings)
    if kind == HISTORIES:
        return audit_histories(inputs[kind][name], labels[attribute], keys, settings)
    once = replace(settings, num_repeats=1)  # on MovieLens four repeats of lists took over 4 minutes more
    return audit_inputs(bag_of_titles(inputs[kind][name], num_titles), labels[attribute], keys, LIST_ATTACKERS, once)


def check_comparable(records: list[EliminatorsRecord]) -> None:
    """UserError for ambiguous names, other backbones, or filters that fit no combination."""
    names = [record.config.name for record in records]
    taken = {NONE, *map(combination_name, records[0].combinations)}
    for number, name in enumerate(names):
        if names.count(name) > 1 or name == "backbone" or (number > 0 and name in taken):
            raise UserError(f"compare: the name of run {name!r} would be ambiguous in the tables: rename its folder")
    for other in records[1:]:
        if other.backbone_hash != records[0].backbone_hash:
            raise UserError("the runs have different backbones: they cannot be compared")
        trained = {name for combination in other.combinations for name in combination}
        if other.config.method == "filter" and not any(set(one) <= trained for one in records[0].combinations):
            wanted = ", ".join(map(combination_name, records[0].combinations))
            raise UserError(
                f"compare: filters of {', '.join(sorted(trained))} in {other.config.name!r} make no combination of "
                f"{records[0].config.name!r} ({wanted}): train filters of its attributes"
            )


def _read_users(
    lake: Lake, sequences: SequenceConfig, length: int, config: AuditConfig, progress: ProgressCallback | None
) -> tuple[HeldOutUsers, EventWindow, RecentHistories]:
    """About `max_users` users at most, by hash, with their test event; first and last event.

    Also recent histories of those of them that are in the audit split, or of some, by the same hash.
    """
    buckets, num_users = range(lake.manifest.num_buckets), max(1, lake.manifest.counts["users"])
    fraction = min(1.0, config.max_users / num_users)
    of_recent = min(fraction, MAX_HISTORY_USERS / (num_users * sequences.audit_fraction)) if config.histories else 0.0

    def read(bucket: int) -> tuple[HeldOutUsers, EventWindow, RecentHistories]:
        times = lake.read("events", bucket, ["timestamp"])["timestamp"].to_numpy()
        users = read_held_out(lake, sequences, TEST_EVENT, length, [bucket], fraction)
        recent = read_recent_histories(
            lake, sequences, "audit", length, [bucket], of_recent, HISTORIES_PER_USER, EVENTS_BETWEEN
        )
        return users, EventWindow.of(times), recent

    found = dict(map_tasks(read, buckets, stage="reading users", progress=progress))
    users, windows, recent = zip(*(found[bucket] for bucket in buckets), strict=True)
    return concatenate_rows(users), EventWindow.union(windows), concatenate_rows(recent)


def _labels(
    records: list[EliminatorsRecord], users: HeldOutUsers, settings: AuditSettings
) -> tuple[dict[str, AttributeLabels], dict[str, str]]:
    """Labels of the attributes that can be attacked, and why others cannot.

    UserError if one to hide cannot be attacked.
    """
    hidden = {name for record in records for combination in record.combinations for name in combination}
    found, reasons = {}, {}
    for a, (name, values) in enumerate(records[0].attributes.items()):
        if len(values) < 2:
            reasons[name] = "it has one value only"
            continue
        labels = AttributeLabels(name, users.attribute_index[:, a], len(values))
        try:
            check_users(labels, users.keys, settings)
        except UserError as error:
            if name in hidden:
                fix = "enlarge the audit split (sequences.audit_fraction), or train without this attribute"
                raise UserError(f"{error}: {fix}") from error
            reasons[name] = str(error)
            continue
        found[name] = labels
    for name, reason in reasons.items():
        logger.warning("%s is not attacked: %s", name, reason)
    return found, reasons


def _labels_of_some(
    labels: dict[str, AttributeLabels], keys: np.ndarray, some: np.ndarray, settings: AuditSettings
) -> tuple[dict[str, AttributeLabels], dict[str, str]]:
    """Labels of some of the users, (N,) bool, and for which attributes these are too few.

    None of either where there are no such users.
    """
    found, reasons = {}, {}
    for name, of in labels.items() if some.any() else ():
        own = of._replace(values=of.values[some])
        try:
            check_users(own, keys[some], settings)
            found[name] = own
        except UserError as error:
            reasons[name] = str(error)
    return found, reasons


def _represent(
    records: list[EliminatorsRecord],
    backbone: SequentialBackbone,
    users: HeldOutUsers,
    recent: RecentHistories,
    offered: np.ndarray,
    progress: ProgressCallback | None,
) -> dict[str, UserRepresentations]:
    """Representations of the users by each combination; `offered`: (territories, N) bool."""
    num_users, (num_recent, per_user, _) = len(users), recent.history.shape
    history = torch.from_numpy(np.concatenate([users.history, recent.history.reshape(-1, users.history.shape[1])]))
    of_recent = recent.attribute_index.repeat(per_user, axis=0)
    values = torch.from_numpy(np.concatenate([users.attribute_index, of_recent]))

    def represented(hidden: Combination, vectors: torch.Tensor, titles: torch.Tensor) -> UserRepresentations:
        vectors, others = vectors[:num_users], vectors[num_users:].numpy()
        kept, left_out = top_lists(users, vectors, titles, offered)
        return UserRepresentations(
            hidden=hidden,
            vectors=vectors.numpy(),
            history_vectors=others.reshape(num_recent, per_user, others.shape[1]),
            lists_kept=kept,
            lists_left_out=left_out,
            metrics=held_out_metrics(users, vectors, titles),
        )

    found = {NONE: represented((), vectors_in_chunks(backbone.user_vectors, history), backbone.title_vectors())}
    for number, record in enumerate(records):
        prefix = "" if number == 0 else f"{record.config.name}/"
        for method in load_methods(record, backbone):
            if isinstance(method, FilterMethod):  # trained for single attributes, applied to any combination
                trained = set(method.attributes)
                method.for_combinations([c for c in records[0].combinations if set(c) <= trained])
            vectors = vectors_in_chunks(method.user_vectors, history, values)  # (K, U, d)
            titles = method.backbone.title_vectors()
            for combination, own in zip(method.combinations, vectors, strict=True):
                found[prefix + combination_name(combination)] = represented(combination, own, titles)
        if progress:
            progress("representing users", number + 1, len(records))
    return found


def top_lists(
    users: HeldOutUsers, vectors: torch.Tensor, titles: torch.Tensor, offered: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(U, 10) titles of the user's territory, best first, -1 where no more are left.

    First with the titles that the user has watched, then without them.
    """
    kept, left_out = [], []
    for rows, seen in users.chunks(len(titles)):
        unavailable = torch.from_numpy(~offered[users.territory[rows]])
        scores = (vectors[rows] @ titles.t()).masked_fill_(unavailable, -torch.inf)
        kept.append(_best(scores))
        left_out.append(_best(scores.masked_fill_(torch.from_numpy(seen), -torch.inf)))
    return np.concatenate(kept), np.concatenate(left_out)


def popular_lists(users: HeldOutUsers, offered: np.ndarray) -> np.ndarray:
    """(U, 10) titles that most users watched, less those that each user has watched."""
    owner = np.repeat(np.arange(len(users)), users.other_counts)
    pairs = np.unique(np.stack([owner, users.other_titles]), axis=1)  # a user counts once for a title
    counts = np.bincount(pairs[1], minlength=offered.shape[1])
    rank = np.argsort(np.argsort(-counts, kind="stable"))
    titles = torch.from_numpy(-rank.astype(np.float32))[:, None]
    return top_lists(users, torch.ones(len(users), 1), titles, offered)[1]


def _best(scores: torch.Tensor) -> np.ndarray:
    """(U, T) scores -> (U, 10) titles with the highest; -1 for those of -inf."""
    best = scores.topk(min(LIST_LENGTH, scores.shape[1]))
    return best.indices.masked_fill_(best.values == -torch.inf, -1).numpy()
