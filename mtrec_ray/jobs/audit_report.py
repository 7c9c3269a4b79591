"""Result of `mtrec audit`: a document that says what an auditor asks for.

A combination is named `gender+age`, `none` is the backbone; those of compared runs are `RUN/gender+age`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import RenderableType

from mtrec_ray.combinations import NONE
from mtrec_ray.evaluation.audit import AuditSettings
from mtrec_ray.evaluation.audit_metrics import AuditResult
from mtrec_ray.evaluation.group_accuracy import MIN_GROUP_USERS, GroupMeans, largest_ndcg_gap
from mtrec_ray.evaluation.history_attacker import EVENTS_BETWEEN, HISTORIES_PER_USER
from mtrec_ray.evaluation.intervals import interval, poisson_weights, relative_gain
from mtrec_ray.evaluation.next_title import NextTitleMetrics
from mtrec_ray.evaluation.tables import write_csv_files
from mtrec_ray.files import finite, join, write_json
from mtrec_ray.jobs.audit_tables import (
    HISTORIES,
    LISTS_KEPT,
    LISTS_LEFT_OUT,
    POPULARITY,
    audit_csv_tables,
    audit_rich_tables,
)
from mtrec_ray.streams.sequences import HeldOutUsers
from mtrec_ray.training.eliminators_run import EliminatorsRecord

AUDIT_FILE, AUDIT_VERSION = "audit.json", 2
NDCG = {"full_ndcg@10": "full_ndcg", "ndcg@10": "ndcg"}  # what groups are compared by: over the catalogue, sampled
NOT_TRIED = (
    "scores of titles, lists of other lengths, and several lists of one user over time",
    "several attributes at once",
    "attackers who know titles that the user has watched, or other attributes",
    "attackers who have several vectors of the user whose value they predict",
)


class EventWindow(NamedTuple):
    """First and last event of some users; None without events."""

    first: datetime | None
    last: datetime | None

    @staticmethod
    def of(times: np.ndarray) -> "EventWindow":
        """From (E,) datetime64 in UTC."""
        ends = (times.min(), times.max()) if len(times) else ()
        found = [end.astype("datetime64[us]").astype(datetime).replace(tzinfo=UTC) for end in ends]
        return EventWindow(*(found or [None, None]))

    @staticmethod
    def union(windows: "Iterable[EventWindow]") -> "EventWindow":
        times = [time for window in windows for time in window if time is not None]
        return EventWindow(min(times), max(times)) if times else EventWindow(None, None)

    def document(self) -> dict[str, str | None]:
        return {name: time and time.isoformat() for name, time in self._asdict().items()}


@dataclass(frozen=True)
class UserRepresentations:
    """Users' vectors and recommendations under one model."""

    hidden: tuple[str, ...]  # attributes that the model is to hide
    vectors: np.ndarray  # (U, d) float32
    history_vectors: np.ndarray  # (S, H, d) of several histories of some users of the audit split
    lists_kept: np.ndarray  # (U, 10) int64 titles of their territory, best first, -1 where no more are left
    lists_left_out: np.ndarray  # (U, 10) without those that the user has watched
    metrics: NextTitleMetrics


@dataclass(frozen=True)
class Audit:
    """A `JobResult`: leakage and accuracy of each combination."""

    record: EliminatorsRecord
    users: HeldOutUsers
    window: EventWindow  # of the lake
    representations: dict[str, UserRepresentations]  # by combination, see above
    attributes: list[str]  # those that could be attacked
    not_attacked: dict[str, str]  # attribute -> why it could not be
    not_attacked_by_histories: dict[str, str]  # the same, where it was attacked otherwise
    leakage: dict[tuple[str, str, str], AuditResult]  # (kind of input, combination, attribute) -> result
    num_parameters: dict[str, int]  # of the backbone and of one combination of each run
    settings: AuditSettings

    def document(self) -> dict[str, Any]:
        return self._document

    @cached_property
    def _document(self) -> dict[str, Any]:
        of_popularity = self._leakage(POPULARITY)
        return finite(
            {
                "version": AUDIT_VERSION,
                "run": self.record.uri,
                "weights_hash": self.record.weights_hash(),
                "data": self._data(),
                "num_users": len(self.users),
                "num_audit_users": int(self.users.audit_split.sum()),
                "settings": asdict(self.settings),
                "histories": {"per_user": HISTORIES_PER_USER, "events_between": EVENTS_BETWEEN},
                "num_parameters": self.num_parameters,
                "attributes": self._attributes(),
                "combinations": {name: self._combination(name) for name in self.representations},
                "references": {POPULARITY: {"hides": [], "leakage": of_popularity}} if of_popularity else {},
                "not_tested": self._not_tested(),
            }
        )

    def _data(self) -> dict[str, Any]:
        """When the events of the lake and the held-out ones were, and which lake it is."""
        return {
            "lake": self.record.source().config.lake,
            "lake_hash": self.record.lake_hash,
            "events": self.window.document(),
            "held_out_events": EventWindow.of(self.users.target_time).document(),
        }

    def _attributes(self) -> dict[str, Any]:
        """Users of each value, also of the audit split, and what makes figures uncertain."""
        found = {}
        for a, (name, values) in enumerate(self.record.attributes.items()):
            index = self.users.attribute_index[:, a]
            counts, attacked = (
                np.bincount(of + 1, minlength=len(values) + 1).tolist() for of in (index, index[self.users.audit_split])
            )
            cells = zip(["unknown", *values], counts, attacked, strict=True)
            unknown, *known = [{"value": v, "num_users": n, "num_audit_users": m} for v, n, m in cells]
            notes = [
                f"{of['value']}: {of['num_audit_users']} attacked users, whose part in the macro averages is noise"
                for of in known
                if 0 < of["num_audit_users"] < MIN_GROUP_USERS
            ]
            if unknown["num_audit_users"] > sum(attacked) / 2:
                notes.append(
                    f"{unknown['num_audit_users']:,} of {sum(attacked):,} users of the audit split have no known value "
                    "and take no part"
                )
            found[name] = {"attacked": name in self.attributes, "values": known, "unknown": unknown, "notes": notes}
        return found

    def _not_tested(self) -> dict[str, Any]:
        kinds = self._kinds
        attacks = [*NOT_TRIED]
        if HISTORIES not in kinds and not self.not_attacked_by_histories:
            attacks.append("attackers with several user vectors of each labelled person (histories = false)")
        attacks += (
            f"{name} by attackers with several vectors of each labelled person: {reason}"
            for name, reason in self.not_attacked_by_histories.items()
        )
        if LISTS_KEPT not in kinds:
            attacks.append("top-10 lists (lists = false)")
        elif LISTS_LEFT_OUT not in kinds:
            attacks.append(
                "top-10 lists without watched titles: this run ranks them too (sequences.exclude_seen = false)"
            )
        small = {}
        for of, (index, cells) in self._groupings.items():
            counts = np.bincount(index[index >= 0], minlength=len(cells))
            few = np.flatnonzero((counts > 0) & (counts < MIN_GROUP_USERS))
            small |= {of: [{"values": cells[g], "num_users": int(counts[g])} for g in few]} if len(few) else {}
        return {"attributes": self.not_attacked, "attacks": attacks, "small_groups": small}

    @property
    def _kinds(self) -> list[str]:
        return list(dict.fromkeys(kind for kind, _, _ in self.leakage))

    def _combination(self, name: str) -> dict[str, Any]:
        one = self.representations[name]
        return {
            "hides": list(one.hidden),
            "accuracy": self._accuracy(one.metrics),
            "ndcg_gaps": self._ndcg_gaps(one.metrics),
            "ndcg_of_groups": self._ndcg_of_groups(one.metrics),
            "leakage": self._leakage(name),
            "written": self._written(name),
        }

    def _leakage(self, name: str) -> dict[str, Any]:
        """Kind of input -> attribute -> result."""
        kinds = [kind for kind in self._kinds if any((kind, name, a) in self.leakage for a in self.attributes)]
        return {
            kind: {a: found.document() for a in self.attributes if (found := self.leakage.get((kind, name, a)))}
            for kind in kinds
        }

    def _written(self, name: str) -> dict[str, Any]:
        """Attribute -> AUC beyond the backbone's, paired, of attackers with many histories.

        A value is written where this lies above 0 and the AUC itself above one half, both by their 95% intervals.
        """
        found = {}
        for attribute in self.attributes if name != NONE else ():
            ours, before = (self.leakage.get((HISTORIES, of, attribute)) for of in (name, NONE))
            if ours and before:
                more = interval(ours.auc_replicates - before.auc_replicates)
                found[attribute] = more._asdict() | {"writes_value": more.low > 0 and ours.auc.low > ours.auc.chance}
        return found

    @cached_property
    def _weights(self) -> np.ndarray:
        """(R, U) bootstrap weights."""
        return poisson_weights(self.users.keys, self.settings.num_bootstrap, self.settings.seed).astype(np.float64)

    @cached_property
    def _groupings(self) -> dict[str, tuple[np.ndarray, list[list[str]]]]:
        """Attribute, or two as `gender x age` -> each user's group, -1 = unknown; its values."""
        names, index = list(self.record.attributes), self.users.attribute_index
        found = {}
        for chosen in chain(combinations(range(len(names)), 1), combinations(range(len(names)), 2)):
            values, group = [list[str]()], np.zeros(len(index), np.int64)
            for a in chosen:
                own = self.record.attributes[names[a]]
                group = np.where((group < 0) | (index[:, a] < 0), -1, group * len(own) + index[:, a])
                values = [[*before, value] for before in values for value in own]
            found[" x ".join(names[a] for a in chosen)] = group, values
        return found

    def _accuracy(self, metrics: NextTitleMetrics) -> dict[str, Any]:
        """Means over users with bootstrap intervals, paired for changes of NDCG in percent."""
        total, backbone = self._weights.sum(axis=1), self.representations[NONE].metrics
        found = {name: self._weights @ getattr(metrics, field) / total for name, field in metrics.reported().items()}
        for field in NDCG.values():
            ours, before = (self._weights @ getattr(of, field) / total for of in (metrics, backbone))
            found[f"{field}_change"] = relative_gain(ours, before)
        return {name: interval(of)._asdict() for name, of in found.items()}

    def _ndcg_gaps(self, metrics: NextTitleMetrics) -> dict[str, Any]:
        """Attribute with enough users -> NDCG -> largest gap between its values."""
        found = {}
        for attribute, values in self.record.attributes.items():
            index, of = self._groupings[attribute][0], {}
            for name, field in NDCG.items():
                metric = getattr(metrics, field)
                gap = largest_ndcg_gap(metric, index, len(values), self.users.keys, self._weights, self.settings.seed)
                if gap is not None:
                    ratio = {
                        "ratio" if part == "value" else f"ratio_{part}": v for part, v in gap.ratio._asdict().items()
                    }
                    extremes = {"best": values[gap.best], "worst": values[gap.worst]}
                    of[name] = gap.gap._asdict() | {"null_high": gap.null_high} | extremes | ratio
            found |= {attribute: of} if of else {}
        return found

    def _ndcg_of_groups(self, metrics: NextTitleMetrics) -> dict[str, list[dict[str, Any]]]:
        """Attribute, or two -> groups with enough users, with their NDCG."""
        found = {}
        for of, (index, cells) in self._groupings.items():
            means = {
                n: GroupMeans.measure(getattr(metrics, f), index, len(cells), self._weights) for n, f in NDCG.items()
            }
            found[of] = [
                {"values": cells[group], "num_users": int(one.num_users[group])}
                | {name: interval(mean.replicates[:, group])._asdict() for name, mean in means.items()}
                for one in [means["ndcg@10"]]
                for group in one.measured
            ]
        return found

    @cached_property
    def csv_tables(self) -> dict[str, pd.DataFrame]:
        return audit_csv_tables(self.document())

    @property
    def metrics(self) -> pd.DataFrame:
        """The content of audit_leakage.csv."""
        return self.csv_tables["audit_leakage"]

    def write(self, folder: str) -> None:
        write_csv_files(folder, self.csv_tables)
        write_json(join(folder, AUDIT_FILE), self.document())

    def tables(self) -> list[RenderableType]:
        return audit_rich_tables(self.document())
