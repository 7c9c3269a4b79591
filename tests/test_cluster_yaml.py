"""cluster.yaml, checked offline by Ray's own validator, and the versions it installs."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_ray_accepts_the_cluster():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    assert config["provider"]["type"] == "aws"
    assert config["available_node_types"]["gpu"]["max_workers"] > config["available_node_types"]["gpu"]["min_workers"]


def test_nodes_get_what_the_package_depends_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    commands = " ".join(yaml.safe_load((ROOT / "cluster.yaml").read_text())["setup_commands"])
    for requirement in project["dependencies"]:
        name = requirement.split("[")[0].split("=")[0].split(">")[0]
        assert name in commands, f"{name} is not installed on the nodes"
    assert "torch==2.13.0" in commands
    assert "ray[default,data,serve,train,tune]==2.60.0" in commands


def test_the_proxies_of_every_node_find_the_package_and_its_middlewares():
    from mtrec_ray.serving import proxy

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    (folder,) = config["file_mounts"]
    assert f"pip install --no-deps {folder}" in config["setup_commands"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert f"{proxy.VARIABLE}=mtrec_ray.serving.proxy:middlewares ray start" in commands[-1]
