"""cluster.yaml, checked offline by Ray's own validator."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mtrec_ray.serving import proxy

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_cluster(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(cluster)
    validate_config(config)
    assert config["provider"]["type"] == "aws"
    assert config["available_node_types"]["gpu"]["max_workers"] > config["available_node_types"]["gpu"]["min_workers"]


def test_every_node_installs_the_package_and_its_proxy_uses_our_middleware(cluster):
    (folder,) = cluster["file_mounts"]
    assert cluster["setup_commands"] == [f"pip install {folder}"]
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert f"{proxy.VARIABLE}=mtrec_ray.serving.proxy:middlewares ray start" in commands[-1]


def test_nodes_run_the_ray_that_the_package_requires(cluster):
    requirements = (ROOT / "pyproject.toml").read_text()
    for image in (cluster["docker"]["head_image"], cluster["docker"]["worker_image"]):
        version = image.partition(":")[2].partition("-")[0]
        assert f'"ray[default,data,serve,train,tune]=={version}"' in requirements
