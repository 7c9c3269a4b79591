"""Settings of `mtrec serve` and serve.yaml: keys, ports and stores that do not fit are refused."""

import socket
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

import mtrec_ray.serving as serving
from mtrec_ray.errors import UserError
from mtrec_ray.serving.config import ServeConfig, api_keys, check_port
from mtrec_ray.serving.endpoint import build, serve_endpoint


def test_taken_port_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = ServeConfig(bundle="bundle", port=server.getsockname()[1])
        with pytest.raises(UserError, match=f"port {taken.port} of host '127.0.0.1': Address already in use; stop the"):
            check_port(taken)
    check_port(taken)


def test_serve_joins_no_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match=r"unset RAY_ADDRESS, or `serve deploy serving/serve\.yaml`"):
        serve_endpoint(ServeConfig(bundle="bundle"))


def test_address_other_than_loopback_requires_keys(tmp_path, monkeypatch):
    monkeypatch.delenv("MTREC_API_KEYS", raising=False)
    public, local = (ServeConfig(bundle="b", host=host) for host in ("0.0.0.0", "127.0.0.1"))
    assert api_keys(local) == ()
    with pytest.raises(UserError, match="can be reached from other machines"):
        api_keys(public)
    file = tmp_path / "keys"
    with_file = ServeConfig(bundle="b", host="0.0.0.0", api_key_file=str(file))
    for content, text in ((b"\n", "contains no key"), (b"\xff\xfe", "cannot be read as text")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=text):
            api_keys(with_file)
    file.write_text("one\n\n two \n")
    assert api_keys(with_file) == ("one", "two")
    monkeypatch.setenv("MTREC_API_KEYS", "three, four")
    assert api_keys(public) == ("three", "four")


def test_serve_yaml_is_valid_and_requires_keys(monkeypatch, tmp_path):
    monkeypatch.delenv("MTREC_API_KEYS", raising=False)
    document = yaml.safe_load((Path(serving.__file__).parent / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(document)
    assert schema.applications[0].import_path == "mtrec_ray.serving.endpoint:build"
    args = {**schema.applications[0].args, "store": None, "api_key_file": None}
    for changes, text in (
        ({}, "can be reached from other machines"),
        ({"port": 9000}, r"port 9000 has no effect here: set http_options\.port"),
        ({"host": "127.0.0.1", "store": str(tmp_path / "nothing")}, "no online store at"),
    ):
        with pytest.raises(UserError, match=text):
            build({**args, **changes})
    scale = {"upscale_delay_s": 3.0}
    deployment = build({"bundle": "b", "host": "127.0.0.1", "scale": scale})._bound_deployment
    autoscaling = deployment._deployment_config.autoscaling_config
    assert autoscaling is not None
    assert (autoscaling.upscale_delay_s, autoscaling.downscale_delay_s) == (3.0, 120.0)
    assert (deployment.max_queued_requests, deployment.backpressure_config.retry_after_s) == (128, 1)
