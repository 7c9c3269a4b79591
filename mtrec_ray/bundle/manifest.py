"""A bundle: a folder with all that serving needs, in safetensors, Parquet and JSON only.

The manifest is written last: a folder without one is no bundle, so a build that was killed leaves none behind. A
title's row in `titles.parquet` is its index in every tensor.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.errors import UserError, check_version
from mtrec_ray.files import WRITABLE, absolute, exists, join, read_file, read_json, remove_file, resolve, write_file
from mtrec_ray.models.closed_form import ClosedFormMaps
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.shapes import EliminatorConfig, SequentialConfig, check_block
from mtrec_ray.models.two_tower import TwoTower, TwoTowerConfig

FORMAT_VERSION = 8
REMAKE = "make it again with `mtrec bundle`"
Model = TypeVar("Model", bound=nn.Module)
Content = TypeVar("Content")

logger = logging.getLogger(__name__)


class BundleFile(StrEnum):
    """Names of a bundle's files."""

    BACKBONE = "backbone.safetensors"
    ELIMINATORS = "eliminators.safetensors"
    MANIFEST = "manifest.json"
    POPULAR = "popular.safetensors"
    PROPENSITY = "propensity.safetensors"
    TITLES = "titles.parquet"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Metric(_Frozen):
    """A metric with its 95% interval."""

    value: float
    low: float
    high: float


class AttackMetric(Metric):
    """The largest value over attackers, and the null of attacks on permuted labels."""

    chance: float  # value without information
    null_low: float  # 95% interval of the largest value without leakage
    null_high: float
    attacker: str  # which has the largest value


class Leakage(_Frozen):
    """How well attackers predict an attribute (`AuditResult.document`)."""

    num_users: int
    num_permutations: int
    leaks: bool  # whether balanced accuracy or AUC exceeds its null
    hidden: bool | None  # whether nothing leaks; null where too few users could show it
    balanced_accuracy: AttackMetric
    auc: AttackMetric
    micro_f1: AttackMetric  # paper B's metric, of its attacker; `chance` is the majority's rate
    attackers: dict[str, dict[str, float]]  # metrics of each attacker

    @property
    def success(self) -> str:
        """What the best attacker reaches, in the metric that exceeds its null."""
        if self.auc.value > self.auc.null_high:
            return f"ranks users with AUC {self.auc.value:.3f}, where chance ends at {self.auc.null_high:.3f}"
        found = self.balanced_accuracy
        return f"has a balanced accuracy of {found.value:.3f}, where chance ends at {found.null_high:.3f}"


class Written(Metric):
    """AUC beyond the backbone's of an attacker with many histories of each labelled person."""

    writes_value: bool  # above 0, with an AUC above one half: the model moves vectors by the value


class ListAudit(_Frozen):
    """Leakage of top-10 lists by attribute."""

    lists_watched_kept: dict[str, Leakage] = {}
    lists_watched_left_out: dict[str, Leakage] = {}  # as requests with `exclude_seen` get them


class EvaluationProtocol(_Frozen):
    """How PR-AUC was measured: values of two protocols cannot be compared."""

    num_negatives: int | None  # negatives per user; None: all titles that the user could discover
    cohort: str  # users that it was measured on: held_out, trained or validation

    def __str__(self) -> str:
        among = "all titles" if self.num_negatives is None else f"{self.num_negatives} negatives"
        return f"against {among} on {self.cohort} users"


class PrAuc(_Frozen):
    """PR-AUC with its 95% interval; None for too few positives."""

    value: float
    low: float | None = None
    high: float | None = None


class PropensityPart(_Frozen):
    """The propensity model of a bundle."""

    model: dict[str, Any]  # fields of `TwoTowerConfig`
    group_of_territory: list[int]
    pr_auc: dict[str, PrAuc]  # by territory, `all` (users pooled), `mean` (of territories), as in an evaluation
    protocol: EvaluationProtocol | None = None  # how `pr_auc` of the run's variant was measured


class BundleManifest(_Frozen):
    """The content of `manifest.json`."""

    format_version: int = FORMAT_VERSION
    version: str  # first 12 digits of a SHA-256 over files and metrics: the same content, the same version
    created_at: datetime
    lake_hash: str
    attributes: dict[str, list[str]]  # sensitive attributes with their values, in the lake's order
    territories: list[str]
    exclude_seen: bool = True  # default of requests, as the backbone was trained (`sequences.exclude_seen`)
    backbone: dict[str, Any]  # fields of `SequentialConfig`
    eliminators: dict[str, Any] | None  # fields of `EliminatorConfig`; null: closed-form maps
    combinations: list[Combination]  # in the order of the stacked tensors
    metrics: dict[str, dict[str, Metric]]  # combination (`none` = backbone) -> metric such as `ndcg@10`
    audit: dict[str, dict[str, Leakage]]  # combination -> attribute, of user vectors
    history_audit: dict[str, dict[str, Leakage]] = {}  # by attackers with many histories of each labelled person
    written: dict[str, dict[str, Written]] = {}  # combination -> attribute, beside the backbone in `history_audit`
    list_audit: dict[str, ListAudit] = {}  # combination -> of top-10 lists, where they were attacked
    propensity: PropensityPart | None = None
    config: dict[str, Any]  # settings of the runs that the weights come from
    files: dict[str, str]  # name -> SHA-256; that of the manifest itself is `manifest_hash`

    def warnings(self, combination: Combination, exclude_seen: bool) -> list[str]:
        """In which ways an answer for a combination may not ignore its attributes."""
        name = combination_name(combination)
        audit, lists = self.audit.get(name, {}), self.list_audit.get(name, ListAudit())
        served = lists.lists_watched_left_out if exclude_seen else lists.lists_watched_kept
        found = []
        for attribute in combination:
            leakage, of_list = audit.get(attribute), served.get(attribute)
            if leakage is None:
                found.append(f"{attribute} may not be hidden: it was not audited")
            elif leakage.leaks:
                found.append(f"{attribute} still leaks: an attacker who sees the hidden profile {leakage.success}")
            elif leakage.hidden is None:
                found.append(f"{attribute} may not be hidden: too few users were audited to tell")
            of_histories = self.history_audit.get(name, {}).get(attribute)
            written = self.written.get(name, {}).get(attribute)
            who = f"an attacker with many profiles of each person of known {attribute}"
            if of_histories is not None and written is not None and written.writes_value:
                ranks = (
                    f"ranks users with AUC {of_histories.auc.value:.3f}, {written.value:.3f} more than without hiding"
                )
                found.append(f"the hidden profile writes {attribute}: {who} {ranks}")
            elif of_histories is not None and of_histories.leaks and leakage is not None and not leakage.leaks:
                found.append(f"{attribute} still leaks: {who} {of_histories.success}")
            if of_list is not None and of_list.leaks:
                kept = lists.lists_watched_kept.get(attribute)
                fix = "; keep watched titles in (exclude_seen=false), then it does not"
                ends = fix if exclude_seen and kept is not None and not kept.leaks else ""
                found.append(f"the list tells {attribute}: an attacker who sees ten titles {of_list.success}{ends}")
        return found


def manifest_hash(document: dict[str, Any]) -> str:
    """SHA-256 of a manifest's JSON without its own hash."""
    files = {name: value for name, value in document["files"].items() if name != BundleFile.MANIFEST}
    return hashlib.sha256(json.dumps(document | {"files": files}, sort_keys=True).encode()).hexdigest()


@dataclass
class Bundle:
    """An opened bundle; a file is read and checked against its hash when it is needed."""

    uri: str
    manifest: BundleManifest

    @staticmethod
    def check_folder(out: str, replace: bool) -> None:
        """UserError for a folder with a bundle, unless `replace`, or with anything else."""
        fs, path = resolve(out)
        names = sorted(info.base_name for info in fs.get_file_info(pafs.FileSelector(path, allow_not_found=True)))
        if BundleFile.MANIFEST in names and not replace:
            raise UserError(f"{out!r} is a bundle already: choose another --out")
        for name in names:
            if not name.startswith((*BundleFile, WRITABLE)):
                raise UserError(f"{out!r} holds {name!r}, which is no part of a bundle: choose another --out")

    @staticmethod
    def write(out: str, manifest: BundleManifest, files: dict[str, bytes]) -> "Bundle":
        """Write a bundle, unless the folder has the same one, and open it."""
        uri = join(out, BundleFile.MANIFEST)
        if exists(uri):
            former, version = read_json(uri).get("version"), manifest.version
            if former == version:
                return Bundle.open(out)
            logger.warning("bundle %r: version %s replaces %s, as runs or metrics changed", out, version, former)
            remove_file(uri)  # first, so that an interrupted write leaves no bundle
        for name, content in files.items():
            write_file(join(out, name), content)
        document = json.loads(manifest.model_dump_json())
        document["files"][BundleFile.MANIFEST] = manifest_hash(document)
        write_file(uri, json.dumps(document, indent=1).encode() + b"\n")
        return Bundle.open(out)

    @staticmethod
    def open(uri: str) -> "Bundle":
        """UserError if there is no bundle, it has another format, or its manifest was changed."""
        try:
            document = read_json(join(uri, BundleFile.MANIFEST))
            if isinstance(document, dict):
                check_version(f"bundle {uri!r}", document.get("format_version"), FORMAT_VERSION, REMAKE)
            manifest = BundleManifest.model_validate(document)
            check_block(f"bundle {uri!r}", manifest.propensity and manifest.propensity.model.get("group_block"))
            if manifest.files.get(BundleFile.MANIFEST) != manifest_hash(document):
                raise UserError(f"bundle {uri!r}: {BundleFile.MANIFEST} was changed: {REMAKE}")
            return Bundle(absolute(uri), manifest)
        except FileNotFoundError as error:
            raise UserError(
                f"no bundle at {uri!r}: {BundleFile.MANIFEST} is missing; `mtrec bundle` makes one"
            ) from error
        except ValidationError as error:
            raise UserError(f"bundle {uri!r}: {BundleFile.MANIFEST} is damaged: {error.errors()[0]['msg']}") from error

    def backbone(self) -> SequentialBackbone:
        return self._load(BundleFile.BACKBONE, lambda: SequentialBackbone(SequentialConfig(**self.manifest.backbone)))

    def eliminators(self) -> StackedEliminators | ClosedFormMaps:
        def make() -> StackedEliminators | ClosedFormMaps:
            manifest, backbone = self.manifest, self.manifest.backbone
            sizes = {name: len(values) for name, values in manifest.attributes.items()}
            if manifest.eliminators is None:
                return ClosedFormMaps(sizes, manifest.combinations, backbone["width"])
            shape = EliminatorConfig(**manifest.eliminators)
            return StackedEliminators(shape, sizes, manifest.combinations, backbone["width"], backbone["num_layers"])

        return self._load(BundleFile.ELIMINATORS, make)

    def propensity(self) -> TwoTower | None:
        """The propensity model, if the bundle has one."""
        part = self.manifest.propensity
        return self._load(BundleFile.PROPENSITY, lambda: TwoTower(TwoTowerConfig(**part.model))) if part else None

    def popular(self) -> Tensor:
        """(territories, 1000) int32 titles, most discovered first; -1 where fewer are offered."""
        return self._read(BundleFile.POPULAR, lambda content: safetensors.torch.load(content)["popular"])

    def titles(self) -> pa.Table:
        """The catalogue, in the order of every tensor."""
        return self._read(BundleFile.TITLES, lambda content: pq.read_table(io.BytesIO(content)))

    def _load(self, name: str, make: Callable[[], Model]) -> Model:
        def load(content: bytes) -> Model:
            model = make()
            model.load_state_dict(safetensors.torch.load(content))
            return model.eval().requires_grad_(False)

        return self._read(name, load)

    def _read(self, name: str, parse: Callable[[bytes], Content]) -> Content:
        """Parse a file; UserError if it is missing or damaged, or does not fit the manifest."""
        what = f"bundle {self.uri!r}"
        try:
            content = read_file(join(self.uri, name))
        except FileNotFoundError as error:
            raise UserError(f"{what} lacks {name}: {REMAKE}") from error
        if hashlib.sha256(content).hexdigest() != self.manifest.files.get(name):
            raise UserError(f"{what}: {name} is damaged or was changed: {REMAKE}")
        try:
            return parse(content)
        except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise UserError(f"{what}: {name} does not fit {BundleFile.MANIFEST}: {error!r}: {REMAKE}") from error
