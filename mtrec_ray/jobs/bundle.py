"""`mtrec bundle`: make runs and their audit into the folder that serving loads."""

import hashlib
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from rich.console import RenderableType

from mtrec_ray.bundle.manifest import Bundle, BundleFile, BundleManifest, Leakage, Metric, PropensityPart, Written
from mtrec_ray.combinations import NONE, combination_name
from mtrec_ray.console import ProgressCallback, facts_table
from mtrec_ray.errors import UserError, check_version
from mtrec_ray.evaluation.tables import AVERAGE
from mtrec_ray.files import absolute, check_writable, join, read_json
from mtrec_ray.jobs.audit_report import AUDIT_FILE, AUDIT_VERSION
from mtrec_ray.jobs.audit_tables import HISTORIES, VECTORS
from mtrec_ray.jobs.config import BundleConfig
from mtrec_ray.jobs.report import EVALUATION_FILE, EVALUATION_VERSION
from mtrec_ray.lake.bucket import Bucket, Catalogue
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import PROJECTION, Lake
from mtrec_ray.models.closed_form import ClosedFormMethod
from mtrec_ray.models.fairness_methods import EliminatorMethod
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.training.backbone_run import load_backbone
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_methods
from mtrec_ray.training.propensity_run import PropensityRecord, load_snapshot
from mtrec_ray.training.record import load_plan

NUM_POPULAR = 1000
AUDITED = TypeAdapter(dict[str, tuple[dict[str, Metric], dict[str, dict[str, Leakage]], dict[str, Written]]])


@dataclass(frozen=True)
class BundleResult:
    """A `JobResult`: a bundle and what it holds."""

    bundle: Bundle

    @property
    def metrics(self) -> pd.DataFrame:
        """Accuracy of each combination, as its audit measured it."""
        found = [(name, m, one) for name, of in self.bundle.manifest.metrics.items() for m, one in of.items()]
        return pd.DataFrame({"combination": name, "metric": metric, **one.model_dump()} for name, metric, one in found)

    def document(self) -> dict[str, Any]:
        manifest = self.bundle.manifest
        return {
            "version": 1,
            "bundle": self.bundle.uri,
            "bundle_version": manifest.version,
            "num_combinations": len(manifest.combinations),
            "audited": bool(manifest.audit),
            "propensity": manifest.propensity is not None,
        }

    def tables(self) -> list[RenderableType]:
        facts = {name.replace("_", " "): value for name, value in list(self.document().items())[2:]}
        return [facts_table(f"Bundle {self.bundle.uri}", facts)]


def make_bundle(config: BundleConfig, progress: ProgressCallback | None = None, replace: bool = False) -> BundleResult:
    """Write a bundle and open it; with `replace`, over an existing one of other content.

    UserError for unfinished runs; runs, audit or evaluation that do not belong together; an output folder that cannot
    be written to or holds anything else; or, unless `replace`, an existing bundle.
    """
    out, record = absolute(config.out), EliminatorsRecord.load_done(config.run)
    source = record.source()
    lake = record.open_lake(source.config.lake)
    if record.config.method not in ("eliminator", "closed_form", "pfrec"):
        raise UserError(f"run {config.run!r} holds {record.config.method} models: a bundle serves eliminators")
    Bundle.check_folder(out, replace)
    audited = _read_audit(record, config.audit)
    part, files = _propensity(config, lake)
    backbone = load_backbone(source, record.backbone_hash)
    (method,) = load_methods(record, backbone)
    assert isinstance(method, EliminatorMethod | ClosedFormMethod)
    check_writable(out)
    catalogue = lake.read("titles", without=[PROJECTION])  # with embeddings if the lake has some
    pq.write_table(catalogue, titles := io.BytesIO())
    files |= {
        BundleFile.BACKBONE: _safetensors(backbone),
        BundleFile.ELIMINATORS: _safetensors(method.pack),
        BundleFile.POPULAR: safetensors.torch.save({"popular": torch.from_numpy(_popular(lake, progress))}),
        BundleFile.TITLES: titles.getvalue(),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    evaluation = part and part.model_dump(include={"pr_auc", "protocol"})
    rewatching = [] if source.config.sequences.exclude_seen else ["rewatching counts"]
    content = json.dumps([hashes, audited, evaluation, *rewatching], sort_keys=True)
    configs = {"backbone": source.config, "eliminators": record.config}
    manifest = BundleManifest(
        version=hashlib.sha256(content.encode()).hexdigest()[:12],
        created_at=datetime.now(UTC),
        lake_hash=record.lake_hash,
        attributes=record.attributes,
        territories=lake.territory_names(),
        exclude_seen=source.config.sequences.exclude_seen,
        backbone={"num_titles": source.num_titles, **source.config.model.model_dump()},
        eliminators=record.config.shape.model_dump() if isinstance(method, EliminatorMethod) else None,
        combinations=record.combinations,
        metrics=audited["metrics"],
        audit=audited["audit"],
        history_audit=audited["history_audit"],
        written=audited["written"],
        list_audit=audited["list_audit"],
        propensity=part,
        config={name: of.model_dump(mode="json") for name, of in configs.items()},
        files=hashes,
    )
    return BundleResult(Bundle.write(out, manifest, files))


def _safetensors(module: torch.nn.Module) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in module.state_dict().items()})


def _propensity(config: BundleConfig, lake: Lake) -> tuple[PropensityPart | None, dict[str, bytes]]:
    uri = config.propensity
    if uri is None:
        if config.evaluation is not None:
            raise UserError("evaluation is of a propensity run: give it with --propensity")
        return None, {}
    run = PropensityRecord.load_done(uri)
    if run.lake_hash != lake.manifest.lake_hash:
        raise UserError(f"run {uri!r} was trained on another lake than the backbone: train both on one lake")
    model = load_snapshot(run, load_plan(run.uri, PairPlan).periods[-1].day)
    of_run = {"model": vars(run.model), "group_of_territory": run.groups.of_territory}
    part = PropensityPart.model_validate(of_run | _read_evaluation(run, config.evaluation))
    return part, {BundleFile.PROPENSITY: _safetensors(model)}


def _read_audit(record: EliminatorsRecord, audit: str | None) -> dict[str, dict[str, Any]]:
    """Fields of the manifest, empty without an audit; UserError if the audit does not fit."""
    if audit is None:
        return {field: {} for field in ("metrics", "audit", "history_audit", "written", "list_audit")}
    document = _read_document("audit", audit, AUDIT_FILE, AUDIT_VERSION, "`mtrec audit RUN --out DIR`")
    if document["weights_hash"] != record.weights_hash():
        raise UserError(f"audit {audit!r} is of other weights than run {record.uri!r}: audit this run")
    names = [NONE, *map(combination_name, record.combinations)]
    found = {name: document["combinations"][name] for name in names}
    metrics = {name: of["accuracy"] for name, of in found.items()}
    leakage = {name: of["leakage"] for name, of in found.items()}
    written = {name: of.get("written", {}) for name, of in found.items()}
    try:
        AUDITED.validate_python({name: (metrics[name], leakage[name], written[name]) for name in names})
    except ValidationError as error:
        name, _, *where = error.errors()[0]["loc"]
        path = "/".join(map(str, (name, *where)))
        raise UserError(f"audit {audit!r}: {path} could not be measured: audit more users") from error
    return {
        "metrics": metrics,
        "audit": {name: of.pop(VECTORS) for name, of in leakage.items()},
        "history_audit": {name: histories for name, of in leakage.items() if (histories := of.pop(HISTORIES, None))},
        "written": {name: of for name, of in written.items() if of},
        "list_audit": {name: of for name, of in leakage.items() if of},
    }


def _read_evaluation(run: PropensityRecord, evaluation: str | None) -> dict[str, Any]:
    """PR-AUC of the run's variant by territory, its protocol; UserError if it does not fit."""
    if evaluation is None:
        return {"pr_auc": {}}
    fix = "`mtrec evaluate propensity RUN --out DIR`"
    document = _read_document("evaluation", evaluation, EVALUATION_FILE, EVALUATION_VERSION, fix)
    own, runs = run.weights_hash(), document["runs"]
    variants = [of["variant"] for of in runs.values() if of["weights_hash"] == own]
    if not variants:
        raise UserError(
            f"evaluation {evaluation!r} is of {', '.join(runs)}, of other weights than run {run.uri!r}: evaluate this "
            f"run with {fix}"
        )
    protocol = document["protocol"]
    territories = document["territory_metrics"][protocol["cohort"]][variants[0]][AVERAGE]
    measured = {name: of["pr_auc"] for name, of in territories.items() if of["pr_auc"]["value"] is not None}
    keys = ("value", "low", "high")
    return {"pr_auc": {n: {k: f.get(k) for k in keys} for n, f in measured.items()}, "protocol": protocol}


def _read_document(what: str, folder: str, file: str, version: int, command: str) -> dict[str, Any]:
    try:
        document = read_json(join(absolute(folder), file))
    except FileNotFoundError as error:
        raise UserError(f"no {what} at {folder!r}: {file} is missing; {command} makes one") from error
    check_version(f"{what} {folder!r}", document.get("version", 0), version, f"make it again with {command}")
    return document


def _popular(lake: Lake, progress: ProgressCallback | None) -> np.ndarray:
    """(territories, 1000) int32 offered titles, by users who watched them; -1 = no more."""
    catalogue = Catalogue.of(lake, *lake.manifest.calendar.day_bounds(0))
    buckets = range(lake.manifest.num_buckets)
    counts = np.zeros((len(lake.manifest.territories), lake.titles.num_rows), dtype=np.int64)
    tasks = map_tasks(_count_titles, buckets, lake, catalogue, stage="counting titles", progress=progress)
    for _, (cells, number) in tasks:
        counts.ravel()[cells] += number
    counts[~catalogue.offer_mask] = -1
    order = np.argsort(-counts, axis=1, kind="stable")[:, :NUM_POPULAR]
    return np.where(np.take_along_axis(counts, order, axis=1) >= 0, order, -1).astype(np.int32)


def _count_titles(index: int, lake: Lake, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
    bucket = Bucket.read(lake, index)
    pairs = np.unique(np.stack([bucket.event_user, bucket.event_title.astype(np.int64)]), axis=1)
    return np.unique(bucket.territory[pairs[0]] * np.int64(len(catalogue.title_ids)) + pairs[1], return_counts=True)
