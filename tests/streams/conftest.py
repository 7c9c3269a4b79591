"""Lakes that several tests read."""

import pytest

from mtrec_ray.lake.manifest import Lake
from tests.streams.lakes import history_lake, random_rows, write_lake


@pytest.fixture(scope="session")
def random_lake(tmp_path_factory) -> Lake:
    """Two territories, for invariants."""
    return write_lake(tmp_path_factory.mktemp("random") / "lake", *random_rows(), num_buckets=4)


@pytest.fixture(scope="session")
def histories(tmp_path_factory) -> Lake:
    """Histories that can be counted by hand, see `history_lake`."""
    return history_lake(tmp_path_factory.mktemp("histories") / "lake")
