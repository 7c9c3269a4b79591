"""Gates, the pointer and the engine that follows it."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

import mtrec_ray as mt
import mtrec_ray.serving as serving
from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.commands.serve import serve
from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.serving.config import PromoteConfig, ServeConfig, api_keys
from mtrec_ray.serving.endpoint import build
from mtrec_ray.serving.engine import Engine
from mtrec_ray.serving.live import LiveEngine
from mtrec_ray.serving.pointer import is_pointer, move_back, move_pointer, read_pointer
from mtrec_ray.serving.promote import promote
from tests.serving.bundles import write_bundle, write_manifest


def config(bundle, pointer, **gates) -> PromoteConfig:
    return validate_config(PromoteConfig, {"bundle": str(bundle), "pointer": str(pointer), "gates": gates})


def make_again(bundle: Path) -> None:
    """Other weights in its place."""
    shutil.rmtree(bundle)
    write_bundle(bundle, 1)


@pytest.fixture
def pointer(tmp_path):
    promote(config(write_bundle(tmp_path / "first"), tmp_path / "live.json"))
    return tmp_path / "live.json"


def test_a_bundle_as_good_as_the_live_one_takes_its_place(tmp_path, pointer):
    result = promote(config(write_bundle(tmp_path / "second", 1, ndcg=0.395), pointer))
    assert result.pointer.version == read_pointer(str(pointer)).version == "v1"
    assert result.pointer.previous == [str(tmp_path / "first")]
    assert [gate.label for gate in result.gates] == [
        "combinations",
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
        ({"permutations": 3}, {}, "only 3 permutations: `mtrec audit --set num_permutations=20`"),
        ({"auc": 0.61}, {}, "null up to 0.540; auc 0.610 (0.590 to 0.630), null up to 0.550"),
        ({"pr_auc": 0.05}, {}, "pr_auc: 0.0500"),
        ({"pr_auc": 0.05, "audit": {}, "metrics": {}}, {"audit": False}, "1 of 3 gates failed:\npr_auc: 0.0500"),
        ({"combinations": [("gender",)]}, {}, "combinations: without combination age, combination gender+age: `"),
        ({"territories": ["north"]}, {}, "combinations: without territory south: `"),
        ({"pr_auc": None}, {}, "pr_auc: the live bundle has one"),
        (
            {"pr_auc": 0.9, "num_negatives": 99},
            {},
            "pr_auc: measured against 99 negatives on held_out users, the live bundle's against all titles on held_out",
        ),
        (
            {"pr_auc": 0.9, "cohort": "validation"},
            {},
            "pr_auc: measured against all titles on validation users, the live bundle's against all titles on held_out "
            "users: evaluate both the same way",
        ),
        ({"audit": {}, "metrics": {}}, {}, "audit: the bundle has no audit"),
    ],
)
def test_a_failing_gate_is_named_and_the_pointer_stays(tmp_path, pointer, bundle, gates, failing):
    before = pointer.read_bytes()
    with pytest.raises(UserError, match="bundle v1 is not promoted") as refused:
        promote(config(write_bundle(tmp_path / "second", 1, **bundle), pointer, **gates))
    assert failing in str(refused.value)
    assert pointer.read_bytes() == before


def test_a_pr_auc_without_its_interval_does_not_pass_and_is_compared_with(tmp_path, pointer):
    less = write_bundle(tmp_path / "less", 1)
    document = json.loads((less / "manifest.json").read_text())
    document["propensity"]["pr_auc"] = {"mean": {"value": 0.1}}
    write_manifest(less, document)
    with pytest.raises(
        UserError, match=r"pr_auc: 0\.1000 has no interval, because positives are too few: evaluate it on more"
    ):
        promote(config(less, pointer))
    promote(config(less, pointer, against_live=False))
    assert promote(config(write_bundle(tmp_path / "second", 2), pointer)).pointer.version == "v2"


def test_looser_gates_let_it_through(tmp_path, pointer):
    promote(config(write_bundle(tmp_path / "second", 1, ndcg=0.3, leak=0.57), pointer, ndcg_ratio=0.5, max_leak=0.1))
    assert read_pointer(str(pointer)).version == "v1"


@pytest.mark.parametrize(
    ("lose", "says"),
    [
        (lambda pointer: pointer.write_text("{"), "is damaged"),
        (lambda pointer: shutil.rmtree(pointer.parent / "first"), "the live bundle: no bundle at"),
        (lambda pointer: make_again(pointer.parent / "first"), r"was rebuilt after its promotion \(then v0\)"),
    ],
    ids=["a damaged pointer", "a lost bundle", "a bundle made again"],
)
def test_what_is_live_and_cannot_be_read_can_be_left(tmp_path, pointer, lose, says):
    second = write_bundle(tmp_path / "second", 1)
    lose(pointer)
    with pytest.raises(UserError, match=f"{says}.*--set gates.against_live=false"):
        promote(config(second, pointer))
    result = promote(config(second, pointer, against_live=False))
    assert result.pointer.version == read_pointer(str(pointer)).version == "v1"
    assert "combinations" not in {gate.label for gate in result.gates}


def test_switches_can_be_let_go_and_brought_back(tmp_path, pointer):
    less = write_bundle(tmp_path / "second", 1, combinations=[("gender",)])
    promote(config(less, pointer, against_live=False))
    assert move_back(str(pointer)).version == "v0"


def test_back_and_back_again_until_there_is_nothing_before(tmp_path, pointer):
    for name, seed in (("second", 1), ("third", 2)):
        folder = write_bundle(tmp_path / name, seed)
        for _ in range(2):  # twice is once
            promote(config(folder, pointer))
    assert [move_back(str(pointer)).version, move_back(str(pointer)).version] == ["v1", "v0"]
    with pytest.raises(UserError, match="nothing to roll back"):
        move_back(str(pointer))


def test_nothing_goes_back_to_a_bundle_that_cannot_be_loaded(tmp_path, pointer):
    promote(config(write_bundle(tmp_path / "second", 1), pointer))
    before = pointer.read_bytes()
    (tmp_path / "first" / "backbone.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks backbone\.safetensors"):
        move_back(str(pointer))
    assert pointer.read_bytes() == before


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


Told = list[tuple[str, str | None]]


def follow(pointer: Path, told: Told, *steps: tuple[Callable[[], Any], Callable[[], Any]]) -> None:
    """Fills `told` with an engine's versions; each step is a move and what comes of it, with some time for more."""

    async def watch() -> None:
        live = LiveEngine(str(pointer), 0.01)
        following = asyncio.create_task(live.follow(lambda *versions: told.append(versions)))
        for move, comes in steps:
            await asyncio.to_thread(move)
            async with asyncio.timeout(60):
                while not comes():
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
        assert not following.done()
        following.cancel()

    asyncio.run(watch())


def test_an_engine_follows_its_pointer_past_bundles_that_cannot_be_loaded(tmp_path, pointer, caplog):
    def point_to_a_broken_one() -> None:
        folder = write_bundle(tmp_path / "second", 1)
        (folder / "backbone.safetensors").unlink()
        move_pointer(str(pointer), Bundle.open(str(folder)))

    third = write_bundle(tmp_path / "third", 2)
    told: Told = []
    broken = (point_to_a_broken_one, lambda: "stays" in caplog.text)
    follow(pointer, told, broken, (lambda: promote(config(third, pointer)), lambda: len(told) == 2))
    assert told == [("v0", None), ("v2", "v0")]
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "bundle v0 stays: UserError: bundle" in said
    assert "lacks backbone.safetensors" in said


@pytest.mark.parametrize(("error", "tries"), [(OSError, 3), (RuntimeError, 1)], ids=["may pass", "will not"])
def test_what_may_pass_is_tried_again_and_nothing_ends_the_following(tmp_path, pointer, monkeypatch, error, tries):
    tried: list[str] = []

    def engine(bundle: Bundle) -> Engine:
        tried.append(bundle.manifest.version)
        if 0 < tried.count("v1") < 3:
            raise error("away")
        return Engine(bundle)

    monkeypatch.setattr("mtrec_ray.serving.live.Engine", engine)
    second = write_bundle(tmp_path / "second", 1)
    told: Told = []
    expected: Told = [("v0", None), ("v1", "v0")][: 1 + (tries == 3)]
    move = (lambda: move_pointer(str(pointer), Bundle.open(str(second))), lambda: len(tried) > tries)
    follow(pointer, told, move, (lambda: None, lambda: len(told) >= len(expected)))
    assert tried == ["v0", *["v1"] * tries]
    assert told == expected


def test_a_bundle_made_again_in_its_place_is_served_once_it_is_promoted(tmp_path, pointer):
    def refuse() -> None:
        with pytest.raises(UserError, match="is version v1, but v0 was promoted: promote it again"):
            LiveEngine(str(pointer), 1.0)

    told: Told = []
    first = tmp_path / "first"
    promoted = (lambda: promote(config(first, pointer, against_live=False)), lambda: len(told) == 2)
    follow(pointer, told, (lambda: make_again(first), lambda: True), (refuse, lambda: True), promoted)
    assert told == [("v0", None), ("v1", "v0")]
    with pytest.raises(UserError, match="nothing to roll back"):
        move_back(str(pointer))


def test_a_rollback_says_which_bundle_is_live_again(tmp_path, pointer):
    promote(config(write_bundle(tmp_path / "second", 1), pointer))
    assert "bundle v0 (" in str(mt.rollback(pointer=str(pointer)).tables())


def test_a_pointer_is_told_from_a_bundle_by_its_name():
    pointers = ["live.json", "s3://b/live.json", "s3://b/live.json?endpoint_override=localhost:9000"]
    assert [is_pointer(uri) for uri in [*pointers, "bundle", "s3://b/bundle?region=x.json"]] == [True] * 3 + [False] * 2


def test_serving_on_this_machine_joins_no_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match=r"unset RAY_ADDRESS, or `serve deploy serving/serve\.yaml`"):
        serve(ServeConfig(bundle="bundle"))


def test_another_address_than_this_machines_needs_keys(tmp_path, monkeypatch):
    monkeypatch.delenv("MTREC_API_KEYS", raising=False)
    open_, local = (ServeConfig(bundle="b", host=host) for host in ("0.0.0.0", "127.0.0.1"))
    assert api_keys(local) == ()
    with pytest.raises(UserError, match="can be reached from other machines"):
        api_keys(open_)
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert api_keys(ServeConfig(bundle="b", host="0.0.0.0", api_key_file=str(file))) == ("one", "two")
    file.write_text("\n")
    with pytest.raises(UserError, match="contains no key"):
        api_keys(ServeConfig(bundle="b", api_key_file=str(file)))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not text"):
        api_keys(ServeConfig(bundle="b", api_key_file=str(file)))
    monkeypatch.setenv("MTREC_API_KEYS", "three, four")
    assert api_keys(open_) == ("three", "four")


def test_the_clusters_file_is_one_that_serve_reads_and_asks_for_keys(monkeypatch, tmp_path):
    monkeypatch.delenv("MTREC_API_KEYS", raising=False)
    document = yaml.safe_load((Path(serving.__file__).parent / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(document)
    assert schema.applications[0].import_path == "mtrec_ray.serving.endpoint:build"
    args = {**schema.applications[0].args, "store": None, "api_key_file": None}
    with pytest.raises(UserError, match="can be reached from other machines"):
        build(args)
    with pytest.raises(UserError, match=r"port 9000 has no effect here: set http_options\.port"):
        build({**args, "port": 9000})
    with pytest.raises(UserError, match="no online store at"):
        build({**args, "host": "127.0.0.1", "store": str(tmp_path / "nothing")})
