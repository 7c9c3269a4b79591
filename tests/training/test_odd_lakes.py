"""Lakes with few users, empty territories or odd names, from raw tables to a bundle, in this process."""

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.jobs import bundle, evaluate, pairs, references
from mtrec_ray.jobs.config import BundleConfig, EvaluateConfig
from mtrec_ray.lake import build, embed
from mtrec_ray.lake.config import BuildOptions, EmbedConfig
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.sources.source import make_source
from mtrec_ray.streams.config import PairsConfig
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.plan import make_plan
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.eliminators import train_eliminators
from mtrec_ray.training.fit import train_backbone, train_propensity
from tests.training.one_worker import OneWorker, backbone_config, eliminators_config

TITLES = [f"t{number}" for number in range(30)]
FILES = {table: f"{table}.parquet" for table in ("users", "events", "titles")}


@pytest.fixture
def one_worker(monkeypatch, tmp_path) -> None:
    """Everything that asks the cluster works here."""
    OneWorker(monkeypatch, tmp_path / "checkpoints")
    for module in (build, embed, evaluate, references, bundle):
        monkeypatch.setattr(module, "map_tasks", LocalReader().map)
    monkeypatch.setattr(evaluate, "cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(pairs, "make_plan", partial(make_plan, reader=LocalReader()))


def lake_of(folder: Path, territories: list[str], idle: str = "", num_buckets: int = 4) -> Lake:
    """A user a territory of the list, twenty events each in forty days; none of those in `idle`."""
    rng, users = np.random.default_rng(0), [f"u{number}" for number in range(len(territories))]
    count = 20 * len(users)
    tables = {
        "users": pd.DataFrame(
            {"user_id": users, "territory": territories, "gender": np.resize(["f", "m"], len(users))}
        ),
        "events": pd.DataFrame(
            {
                "user_id": np.repeat(users, 20),
                "title_id": rng.choice(TITLES, count),
                "timestamp": 1_640_995_200 + rng.integers(0, 40 * 86_400, count),
            }
        )[np.repeat(territories, 20) != idle],
        "titles": pd.DataFrame({"title_id": TITLES, "name": TITLES, "genres": "drama", "synopsis": "one"}),
    }
    (folder / "raw").mkdir()
    for name, table in tables.items():
        table.to_parquet(folder / "raw" / FILES[name], index=False)
    source = make_source("parquet", {**FILES, "attributes": {"gender": None}}, str(folder / "raw"))
    build.build_lake(source, str(folder / "lake"), BuildOptions(num_buckets=num_buckets))
    settings = {"lake": str(folder / "lake"), "text": {"model": None}, "interactions": {"width": 4}}
    embed.embed_lake(validate_config(EmbedConfig, settings))
    return Lake.open(str(folder / "lake"))


def numbers(document: Any) -> Iterator[float]:
    """All floats of a nested document."""
    if isinstance(document, dict):
        document = list(document.values())
    for one in document if isinstance(document, list) else ():
        yield from numbers(one)
    if isinstance(document, float):
        yield document


@pytest.mark.usefixtures("one_worker")
@pytest.mark.parametrize(
    ("territories", "more"),
    [
        (["all"] * 40, {}),
        (["mean"] * 30 + ["all"] * 9 + ["weighted"], {"idle": "all"}),
        (["US"] * 39 + ["SE"], {"num_buckets": 64}),
    ],
    ids=["called all", "called mean, one without events, one with one user", "empty buckets"],
)
def test_odd_lakes_become_a_bundle_without_nan(territories, more, tmp_path):
    lake, runs = lake_of(tmp_path, territories, **more), tmp_path / "runs"
    counted = pairs.summarise_pairs(PairsConfig(lake=lake.uri))
    summary, (table,) = counted.document(), counted.tables()
    assert "made the interaction vectors" in str(getattr(table, "caption", ""))
    counts = {name: of["users"] for name, of in summary["territories"].items()}
    assert counts == Counter(territories)
    assert summary["all"]["users"] == len(territories)
    document = {"lake": lake.uri, "runs": str(runs), "kind": "mtl", "name": "mtl", "model": {"d": 8, "groups": "each"}}
    settings = document | {"sample": {"test_fraction": 0.5}, "optim": {"epochs": 1}}
    propensity = train_propensity(validate_config(PropensityConfig, settings))
    of_runs = {"runs": [propensity.uri], "num_bootstrap": 20, "out": str(tmp_path / "report")}
    evaluation = evaluate.evaluate_propensity(validate_config(EvaluateConfig, of_runs))
    backbone = train_backbone(backbone_config(lake, runs))
    run = train_eliminators(eliminators_config(backbone, runs, combinations="gender"))
    config = {"run": run.uri, "propensity": propensity.uri, "evaluation": of_runs["out"], "out": str(tmp_path / "b")}
    manifest = bundle.make_bundle(validate_config(BundleConfig, config)).bundle.manifest
    assert manifest.territories == lake.territory_names()
    documents = [summary, propensity.document(), evaluation.document(), backbone.document(), run.document()]
    assert all(map(math.isfinite, numbers(documents)))


@pytest.mark.usefixtures("one_worker")
def test_a_lake_of_one_user_trains_a_backbone_and_has_nothing_to_hide(tmp_path):
    lake = lake_of(tmp_path, ["US"])
    backbone = train_backbone(backbone_config(lake, tmp_path / "runs"))
    with pytest.raises(UserError, match="attribute 'gender' has one value only"):
        train_eliminators(eliminators_config(backbone, tmp_path / "runs", combinations="gender"))
