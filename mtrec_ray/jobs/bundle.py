"""`mtrec bundle`: runs and their audit, made into what serving loads."""

import hashlib
import io
import json
import logging
from datetime import UTC, datetime

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import safetensors.torch
import torch

from mtrec_ray.bundle.manifest import (
    BACKBONE_FILE,
    ELIMINATORS_FILE,
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
from mtrec_ray.jobs.bundle_config import BundleConfig
from mtrec_ray.jobs.bundle_figures import audited, evaluated
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


def make_bundle(config: BundleConfig, progress: ProgressCallback | None = None, again: bool = False) -> Bundle:
    """Write a bundle and open it.

    Args:
        config: its runs and their figures.
        progress: told of counted buckets.
        again: a bundle that is there already is kept if its version is the same, else another takes its place.

    Raises:
        UserError: unfinished runs; runs, audit or evaluation that do not belong together; a place that cannot be
            written to or that holds anything else; or, unless `again`, a bundle that is there already.
    """
    out, record = absolute(config.out), EliminatorsRecord.load_done(config.run)
    source = record.source()
    lake = record.open_lake(source.config.lake)
    if record.config.method != "eliminator":
        raise UserError(f"run {config.run!r} holds {record.config.method} models: a bundle serves eliminators")
    if exists(join(out, MANIFEST_FILE)) and not again:
        raise UserError(f"{config.out!r} is a bundle already: choose another --out")
    _check_nothing_else(out)
    metrics, audit = audited(record, config.audit)
    part, files = _propensity(config, lake)
    backbone = load_backbone(source, record.backbone_hash)
    (candidate,) = load_methods(record, backbone)
    assert isinstance(candidate, EliminatorMethod)
    check_writable(out)
    files |= {
        BACKBONE_FILE: safetensors.torch.save(_plain(backbone.state_dict())),
        ELIMINATORS_FILE: safetensors.torch.save(_plain(candidate.pack.state_dict())),
        POPULAR_FILE: safetensors.torch.save({"popular": torch.from_numpy(_popular(lake, progress))}),
        TITLES_FILE: _titles(lake),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    evaluation = part and part.model_dump(include={"metrics", "protocol"})
    told = json.dumps([hashes, metrics, audit, evaluation], sort_keys=True)
    version = hashlib.sha256(told.encode()).hexdigest()[:12]
    if exists(join(out, MANIFEST_FILE)):
        if (former := read_json(join(out, MANIFEST_FILE)).get("version")) == version:
            return Bundle.open(out)
        logger.warning("bundle %r: version %s gives way to %s, as runs or figures changed", out, former, version)
        remove_file(join(out, MANIFEST_FILE))  # first: what is written below is no bundle until it is whole
    manifest = BundleManifest(
        version=version,
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
            "backbone": source.config.model_dump(mode="json"),
            "eliminators": record.config.model_dump(mode="json"),
        },
        files=hashes,
    )
    for name, content in files.items():
        write_file(join(out, name), content)
    document = json.loads(manifest.model_dump_json())
    document["files"][MANIFEST_FILE] = manifest_hash(document)
    write_json(join(out, MANIFEST_FILE), document)
    return Bundle.open(out)


def _check_nothing_else(out: str) -> None:
    """UserError where a folder holds more than a bundle, or what is left of writing one."""
    fs, path = resolve(out)
    found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    names = (BACKBONE_FILE, ELIMINATORS_FILE, MANIFEST_FILE, POPULAR_FILE, PROPENSITY_FILE, TITLES_FILE, WRITABLE)
    other = sorted(info.base_name for info in found if not info.base_name.startswith(names))
    if other:
        raise UserError(f"{out!r} holds {other[0]!r}, which is no part of a bundle: choose another --out")


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


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
    metrics, protocol = evaluated(run, config.evaluation)
    part = PropensityPart(
        model=run.model,
        group_of_territory=list(run.groups.of_territory),
        metrics=list(run.figures.values())[-1] | metrics,
        protocol=protocol,
    )
    return part, {PROPENSITY_FILE: safetensors.torch.save(_plain(model.state_dict()))}


def _popular(lake: Lake, progress: ProgressCallback | None) -> np.ndarray:
    """(territories, 1000) int32 titles offered in each territory by users who watched them, most first."""
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


def _titles(lake: Lake) -> bytes:
    """The titles table with its embeddings, where it has some."""
    buffer = io.BytesIO()
    pq.write_table(lake.read("titles"), buffer)
    return buffer.getvalue()
