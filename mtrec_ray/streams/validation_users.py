"""Validation users: scored for choices made before testing, and never trained on."""

from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np

from mtrec_ray.hashing import uniforms
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.sampling import VALIDATION, split_of
from mtrec_ray.streams.scored_users import FixedCandidates, ScoringChunk, scoring_chunks


def validation_chunks(
    lake: Lake,
    sample: SampleConfig,
    bounds: tuple[datetime, datetime],
    buckets: Sequence[int],
    *,
    fraction: float,
    fixed_candidates: bool,
) -> Iterator[ScoringChunk]:
    """Validation users of some buckets with all titles that they could discover.

    Args:
        lake: what is read.
        sample: whose validation split.
        bounds: [start, end) of the time whose discoveries are positives.
        buckets: to read.
        fraction: of these users that are scored, drawn by hash.
        fixed_candidates: score the source's candidate lists, which are of its test days; else all that is offered.
    """
    catalogue = Catalogue.of(lake, *bounds)
    for index in buckets:
        bucket = Bucket.read(lake, index, catalogue.title_ids, ("embedding",))
        chosen = split_of(bucket.keys, sample) == VALIDATION
        chosen &= uniforms(bucket.keys, "validated in trials") < fraction
        fixed = FixedCandidates.of(lake, index) if fixed_candidates else None
        yield from scoring_chunks(bucket, np.flatnonzero(chosen), catalogue, fixed)


def validation_sampling_fraction(lake: Lake, sample: SampleConfig, num_buckets: int, max_users: int) -> float:
    """Fraction of the validation users of so many buckets that makes at most about `max_users`."""
    expected = sample.validation_fraction * lake.manifest.counts["users"] * num_buckets
    return max_users * lake.manifest.num_buckets / max(1.0, expected)


def by_territory(chunks: Iterator[ScoringChunk]) -> list[ScoringChunk]:
    """The same users, those of a territory in one chunk."""
    found: dict[int, list[ScoringChunk]] = {}
    for chunk in chunks:
        found.setdefault(chunk.territory, []).append(chunk)
    return [ScoringChunk.concatenate(parts) for parts in found.values()]
