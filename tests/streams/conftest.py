"""A random lake of two territories for invariants."""

import pytest

from mtrec_ray.lake.manifest import Lake
from tests.streams.lakes import random_rows, write_lake


@pytest.fixture(scope="session")
def random_lake(tmp_path_factory) -> Lake:
    return write_lake(tmp_path_factory.mktemp("random") / "lake", *random_rows(), num_buckets=4)
