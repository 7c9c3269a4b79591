"""Gates, the pointer and the engine that follows it."""

import asyncio
import json
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

import serving
from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from serving.config import ServeConfig, api_keys
from serving.endpoint import build
from serving.gates_config import PromoteConfig
from serving.live import LiveEngine
from serving.pointer import move_back, read_pointer
from serving.promote import promote
from tests.serving.bundles import write_bundle


def config(bundle, pointer, **gates) -> PromoteConfig:
    return validate_config(PromoteConfig, {"bundle": str(bundle), "pointer": str(pointer), "gates": gates})


@pytest.fixture
def pointer(tmp_path):
    promote(config(write_bundle(tmp_path / "first"), tmp_path / "live.json"))
    return tmp_path / "live.json"


def test_a_bundle_as_good_as_the_live_one_takes_its_place(tmp_path, pointer):
    moved, gates = promote(config(write_bundle(tmp_path / "second", 1, ndcg=0.395), pointer))
    assert moved.version == read_pointer(str(pointer)).version == "v1"
    assert moved.previous == [str(tmp_path / "first")]
    assert [gate.name for gate in gates] == [
        *("ndcg@10/none", "ndcg@10/gender", "ndcg@10/age", "ndcg@10/gender+age"),
        *("leak/gender/gender", "leak/age/age", "leak/gender+age/gender", "leak/gender+age/age"),
        "pr_auc",
    ]


@pytest.mark.parametrize(
    ("bundle", "gates", "failing"),
    [
        ({"ndcg": 0.3}, {}, "ndcg@10/none: 0.3000 (0.2900 to 0.3100), live 0.4000"),
        ({"ndcg": 0.4}, {"min_ndcg": 0.395}, "ndcg@10/gender"),
        ({"leak": 0.57}, {}, "leak/gender+age/age: balanced accuracy 0.570 (0.550 to 0.590), null up to 0.540"),
        ({"pr_auc": 0.05}, {}, "pr_auc: 0.0500"),
        ({"pr_auc": None}, {}, "pr_auc: the live bundle has one"),
        ({"audit": {}, "metrics": {}}, {}, "audit: the bundle was made without one"),
    ],
)
def test_a_failing_gate_is_named_and_the_pointer_stays(tmp_path, pointer, bundle, gates, failing):
    before = pointer.read_bytes()
    with pytest.raises(UserError, match="bundle v1 stays out") as refused:
        promote(config(write_bundle(tmp_path / "second", 1, **bundle), pointer, **gates))
    assert failing in str(refused.value)
    assert pointer.read_bytes() == before


def test_looser_gates_let_it_through(tmp_path, pointer):
    promote(config(write_bundle(tmp_path / "second", 1, ndcg=0.3, leak=0.57), pointer, ndcg_share=0.5, max_leak=0.1))
    assert read_pointer(str(pointer)).version == "v1"


def test_back_and_back_again_until_there_is_nothing_before(tmp_path, pointer):
    promote(config(write_bundle(tmp_path / "second", 1), pointer))
    promote(config(write_bundle(tmp_path / "third", 2), pointer))
    assert [move_back(str(pointer)).version, move_back(str(pointer)).version] == ["v1", "v0"]
    with pytest.raises(UserError, match="nothing to go back to"):
        move_back(str(pointer))


@pytest.mark.parametrize("name", ["backbone.safetensors", "eliminators.safetensors", "titles.parquet"])
def test_a_damaged_bundle_never_goes_live(tmp_path, pointer, name):
    folder = write_bundle(tmp_path / "second", 1)
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        promote(config(folder, pointer))
    document = json.loads((tmp_path / "first" / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | {"format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        promote(config(folder, pointer))
    assert read_pointer(str(pointer)).version == "v0"


def test_an_engine_follows_its_pointer_past_bundles_that_cannot_be_loaded(tmp_path, pointer):
    told: list[tuple[str, str | None]] = []

    async def watch() -> list[str]:
        live, seen = LiveEngine(str(pointer), 0.01), []
        following = asyncio.create_task(live.follow(lambda *versions: told.append(versions)))
        for move in (break_it, lambda: promote(config(write_bundle(tmp_path / "third", 2), pointer))):
            await asyncio.to_thread(move)
            for _ in range(200):
                await asyncio.sleep(0.01)
                if live.engine.version == read_pointer(str(pointer)).version:
                    break
            seen.append(live.engine.version)
        following.cancel()
        return seen

    def break_it() -> None:
        folder = write_bundle(tmp_path / "second", 1)
        promote(config(folder, pointer))
        (folder / "backbone.safetensors").unlink()

    assert asyncio.run(watch())[-1] == "v2"
    assert (told[0], told[-1]) == (("v0", None), ("v2", told[-2][0]))


def test_another_address_than_this_machines_needs_keys(tmp_path, monkeypatch):
    monkeypatch.delenv("MTREC_API_KEYS", raising=False)
    open_, local = (ServeConfig(bundle="b", host=host) for host in ("0.0.0.0", "127.0.0.1"))
    assert api_keys(local) == ()
    with pytest.raises(UserError, match="can be reached from elsewhere"):
        api_keys(open_)
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert api_keys(ServeConfig(bundle="b", host="0.0.0.0", api_key_file=str(file))) == ("one", "two")
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no key"):
        api_keys(ServeConfig(bundle="b", api_key_file=str(file)))
    monkeypatch.setenv("MTREC_API_KEYS", "three, four")
    assert api_keys(open_) == ("three", "four")


def test_the_clusters_file_is_one_that_serve_reads_and_asks_for_keys(monkeypatch, tmp_path):
    monkeypatch.delenv("MTREC_API_KEYS", raising=False)
    document = yaml.safe_load((Path(serving.__file__).parent / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(document)
    assert schema.applications[0].import_path == "serving.endpoint:build"
    args = {**schema.applications[0].args, "store": None, "api_key_file": None}
    with pytest.raises(UserError, match="can be reached from elsewhere"):
        build(args)
    with pytest.raises(UserError, match="no online store at"):
        build({**args, "host": "127.0.0.1", "store": str(tmp_path / "nothing")})
