"""`mtrec bundle`: make runs and their audit into the folder that serving loads."""

import hashlib
import io
import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import safetensors.torch
import torch
from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.bundle.manifest import (
    BACKBONE_FILE,
    ELIMINATORS_FILE,
    FILES,
    MANIFEST_FILE,
    POPULAR_FILE,
    PROPENSITY_FILE,
    TITLES_FILE,
    Bundle,
    BundleManifest,
    PropensityPart,
    manifest_hash,
)
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import (
    WRITABLE,
    absolute,
    check_writable,
    exists,
    join,
    read_json,
    remove_file,
    resolve,
    write_file,
    write_json,
)
from mtrec_ray.jobs.bundle_metrics import read_audit, read_evaluation
from mtrec_ray.jobs.config import BundleConfig
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.fairness_methods import EliminatorMethod
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.training.backbone_run import load_backbone
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_methods
from mtrec_ray.training.propensity_run import PropensityRecord, load_snapshot
from mtrec_ray.training.record import load_plan

NUM_POPULAR = 1000

logger = logging.getLogger(__name__)


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
        table = Table(title=f"Bundle {self.bundle.uri}", show_header=False)
        for name, value in list(self.document().items())[2:]:
            table.add_row(name.replace("_", " "), str(value))
        return [table]


def make_bundle(config: BundleConfig, progress: ProgressCallback | None = None, replace: bool = False) -> BundleResult:
    """Write a bundle and open it; with `replace`, over an existing one of other content.

    Raises:
        UserError: unfinished runs; runs, audit or evaluation that do not belong together; an output folder that cannot
            be written to or holds anything else; or, unless `replace`, an existing bundle.
    """
    out, record = absolute(config.out), EliminatorsRecord.load_done(config.run)
    source = record.source()
    lake = record.open_lake(source.config.lake)
    if record.config.method != "eliminator":
        raise UserError(f"run {config.run!r} holds {record.config.method} models: a bundle serves eliminators")
    if exists(join(out, MANIFEST_FILE)) and not replace:
        raise UserError(f"{config.out!r} is a bundle already: choose another --out")
    _check_nothing_else(out)
    metrics, audit = read_audit(record, config.audit)
    part, files = _propensity(config, lake)
    backbone = load_backbone(source, record.backbone_hash)
    (method,) = load_methods(record, backbone)
    assert isinstance(method, EliminatorMethod)
    check_writable(out)
    pq.write_table(lake.read("titles"), titles := io.BytesIO())  # with embeddings if the lake has some
    files |= {
        BACKBONE_FILE: _safetensors(backbone),
        ELIMINATORS_FILE: _safetensors(method.pack),
        POPULAR_FILE: safetensors.torch.save({"popular": torch.from_numpy(_popular(lake, progress))}),
        TITLES_FILE: titles.getvalue(),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    evaluation = part and part.model_dump(include={"pr_auc", "protocol"})
    content = json.dumps([hashes, metrics, audit, evaluation], sort_keys=True)
    manifest = BundleManifest(
        version=hashlib.sha256(content.encode()).hexdigest()[:12],
        created_at=datetime.now(UTC),
        lake_hash=record.lake_hash,
        attributes=record.attributes,
        territories=lake.territory_names(),
        backbone={"num_titles": source.num_titles, **source.config.model.model_dump()},
        eliminators=record.config.shape.model_dump(),
        combinations=record.combinations,
        metrics=metrics,
        audit=audit,
        propensity=part,
        config={
            name: run.config.model_dump(mode="json") for name, run in (("backbone", source), ("eliminators", record))
        },
        files=hashes,
    )
    return BundleResult(_write(out, manifest, files))


def _write(out: str, manifest: BundleManifest, files: dict[str, bytes]) -> Bundle:
    """Write a bundle, unless the folder has the same one."""
    uri = join(out, MANIFEST_FILE)
    if exists(uri):
        former = read_json(uri).get("version")
        if former == manifest.version:
            return Bundle.open(out)
        logger.warning("bundle %r: version %s replaces %s, as runs or metrics changed", out, manifest.version, former)
        remove_file(uri)  # first, so that an interrupted write leaves no bundle
    for name, content in files.items():
        write_file(join(out, name), content)
    document = json.loads(manifest.model_dump_json())
    document["files"][MANIFEST_FILE] = manifest_hash(document)
    write_json(uri, document)
    return Bundle.open(out)


def _check_nothing_else(out: str) -> None:
    """UserError if a folder holds more than a bundle, complete or not."""
    fs, path = resolve(out)
    found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    other = sorted(info.base_name for info in found if not info.base_name.startswith((*FILES, WRITABLE)))
    if other:
        raise UserError(f"{out!r} holds {other[0]!r}, which is no part of a bundle: choose another --out")


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
    pr_auc, protocol = read_evaluation(run, config.evaluation)
    groups = list(run.groups.of_territory)
    part = PropensityPart(model=run.model, group_of_territory=groups, pr_auc=pr_auc, protocol=protocol)
    return part, {PROPENSITY_FILE: _safetensors(model)}


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
    bucket = Bucket.read(lake, index, catalogue.title_ids)
    pairs = np.unique(np.stack([bucket.event_user, bucket.event_title.astype(np.int64)]), axis=1)
    return np.unique(bucket.territory[pairs[0]] * np.int64(len(catalogue.title_ids)) + pairs[1], return_counts=True)
