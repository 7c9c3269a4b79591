"""Gates, the pointer and the engine that follows it."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.serving.config import PromoteConfig, RollbackConfig
from mtrec_ray.serving.engine import Engine
from mtrec_ray.serving.pointer import LiveEngine, is_pointer, move_pointer, read_pointer
from mtrec_ray.serving.promote import PromoteResult, promote, rollback
from tests.serving.bundles import write_bundle, write_manifest

HELD_OUT = "the live bundle's against all titles on held_out users: evaluate both the same way"


def promoted(bundle: Path, pointer: Path, **gates: Any) -> PromoteResult:
    settings = {"bundle": str(bundle), "pointer": str(pointer), "gates": gates}
    return promote(validate_config(PromoteConfig, settings))


def rebuild(bundle: Path) -> None:
    """Other weights at the same path."""
    shutil.rmtree(bundle)
    write_bundle(bundle, 1)


@pytest.fixture(autouse=True)
def often(monkeypatch) -> None:
    monkeypatch.setattr("mtrec_ray.serving.pointer.POLL_S", 0.01)


@pytest.fixture
def pointer(tmp_path) -> Path:
    promoted(write_bundle(tmp_path / "first"), tmp_path / "live.json")
    return tmp_path / "live.json"


def live_version(pointer: Path) -> str:
    return read_pointer(str(pointer)).version


def test_bundle_as_good_as_the_live_one_is_promoted(tmp_path, pointer):
    result = promoted(write_bundle(tmp_path / "second", 1, ndcg=0.395), pointer)
    assert result.pointer.version == live_version(pointer) == "v1"
    assert result.pointer.previous == [str(tmp_path / "first")]
    labels = [
        "combinations",
        *("ndcg@10/none", "ndcg@10/gender", "ndcg@10/age", "ndcg@10/gender+age"),
        *("leak/gender/gender", "leak/age/age", "leak/gender+age/gender", "leak/gender+age/age"),
        "pr_auc",
    ]
    assert [gate.label for gate in result.gates] == labels
    assert result.metrics[["name", "passed"]].iloc[-1].tolist() == ["pr_auc", True]
    document = result.document()
    assert (document["version"], document["bundle_version"], len(document["gates"])) == (1, "v1", len(labels))


@pytest.mark.parametrize(
    ("bundle", "gates", "failing"),
    [
        ({"ndcg": 0.3}, {}, "ndcg@10/none: 0.3000 (0.2900 to 0.3100), live 0.4000"),
        ({"leak": 0.57}, {}, "leak/gender+age/age: balanced accuracy 0.570 (0.550 to 0.590), null up to 0.540"),
        ({"permutations": 3}, {}, "only 3 permutations: `mtrec audit --set num_permutations=20`"),
        ({"auc": 0.61}, {}, "null up to 0.540; auc 0.610 (0.590 to 0.630), null up to 0.550"),
        ({"pr_auc": 0.05}, {}, "pr_auc: 0.0500"),
        ({"pr_auc": 0.05, "audit": {}, "metrics": {}}, {"audit": False}, "1 of 3 gates failed:\npr_auc: 0.0500"),
        ({"combinations": [("gender",)]}, {}, "combinations: without combination age, combination gender+age: `"),
        ({"territories": ["north"]}, {}, "combinations: without territory south: `"),
        ({"pr_auc": None}, {}, "pr_auc: the live bundle has one"),
        ({"num_negatives": 99}, {}, f"pr_auc: measured against 99 negatives on held_out users, {HELD_OUT}"),
        ({"cohort": "validation"}, {}, f"pr_auc: measured against all titles on validation users, {HELD_OUT}"),
        ({"audit": {}, "metrics": {}}, {}, "audit: the bundle has no audit"),
    ],
)
def test_failed_gate_is_named_and_the_pointer_stays(tmp_path, pointer, bundle, gates, failing):
    before = pointer.read_bytes()
    with pytest.raises(UserError, match="bundle v1 is not promoted") as refused:
        promoted(write_bundle(tmp_path / "second", 1, **bundle), pointer, **gates)
    assert failing in str(refused.value)
    assert pointer.read_bytes() == before


def test_pr_auc_without_an_interval_fails_but_can_be_compared_with(tmp_path, pointer):
    bundle = write_bundle(tmp_path / "second", 1)
    document = json.loads((bundle / "manifest.json").read_text())
    document["propensity"]["pr_auc"] = {"mean": {"value": 0.1}}
    write_manifest(bundle, document)
    with pytest.raises(UserError, match=r"pr_auc: 0\.1000 has no interval, because positives are too few: evaluate it"):
        promoted(bundle, pointer)
    promoted(bundle, pointer, against_live=False)
    assert promoted(write_bundle(tmp_path / "third", 2), pointer).pointer.version == "v2"


def test_looser_gates_promote(tmp_path, pointer):
    promoted(write_bundle(tmp_path / "second", 1, ndcg=0.3, leak=0.57), pointer, ndcg_ratio=0.5, max_leak=0.1)
    assert live_version(pointer) == "v1"


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda pointer: pointer.write_text("{"), "is damaged"),
        (lambda pointer: shutil.rmtree(pointer.parent / "first"), "the live bundle: no bundle at"),
        (
            lambda pointer: rebuild(pointer.parent / "first"),
            "the live bundle: bundle .* is version v1, but v0 was promoted",
        ),
    ],
    ids=["damaged pointer", "lost bundle", "rebuilt bundle"],
)
def test_unreadable_live_bundle_is_replaced_without_a_comparison(tmp_path, pointer, damage, text):
    second = write_bundle(tmp_path / "second", 1)
    damage(pointer)
    with pytest.raises(UserError, match=f"{text}.*--set gates.against_live=false"):
        promoted(second, pointer)
    result = promoted(second, pointer, against_live=False)
    assert result.pointer.version == live_version(pointer) == "v1"
    assert "combinations" not in {gate.label for gate in result.gates}


def test_rollback_ends_where_no_bundle_was_live_before(tmp_path, pointer):
    for name, seed in (("second", 1), ("third", 2)):
        folder = write_bundle(tmp_path / name, seed)
        for _ in range(2):  # twice is once
            promoted(folder, pointer)
    config = RollbackConfig(pointer=str(pointer))
    assert rollback(config).pointer.version == "v1"
    result = rollback(config)
    assert "bundle v0 (" in str(result.tables())
    assert result.metrics.empty
    with pytest.raises(UserError, match="nothing to roll back"):
        rollback(config)


def test_rollback_to_a_damaged_bundle_is_refused(tmp_path, pointer):
    promoted(write_bundle(tmp_path / "second", 1, combinations=[("gender",)]), pointer, against_live=False)
    before = pointer.read_bytes()
    (tmp_path / "first" / "backbone.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks backbone\.safetensors"):
        rollback(RollbackConfig(pointer=str(pointer)))
    assert pointer.read_bytes() == before


@pytest.mark.parametrize("name", ["backbone.safetensors", "eliminators.safetensors", "titles.parquet"])
def test_damaged_bundle_never_goes_live(tmp_path, pointer, name):
    folder = write_bundle(tmp_path / "second", 1)
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        promoted(folder, pointer)
    document = json.loads((tmp_path / "first" / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | {"format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        promoted(folder, pointer)
    assert live_version(pointer) == "v0"


Versions = list[tuple[str, str | None]]


def follow(pointer: Path, versions: Versions, *steps: tuple[Callable[[], Any], Callable[[], Any]]) -> None:
    """Collect an engine's versions; each step is an action and the condition to wait for, plus some time."""

    async def watch() -> None:
        live = LiveEngine(str(pointer))
        following = asyncio.create_task(live.follow(lambda *changed: versions.append(changed)))
        for action, condition in steps:
            await asyncio.to_thread(action)
            async with asyncio.timeout(60):
                while not condition():
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
        assert not following.done()
        following.cancel()

    asyncio.run(watch())


def test_engine_follows_its_pointer_past_a_damaged_bundle(tmp_path, pointer, caplog):
    def point_to_a_damaged_one() -> None:
        folder = write_bundle(tmp_path / "second", 1)
        (folder / "backbone.safetensors").unlink()
        move_pointer(str(pointer), Bundle.open(str(folder)))

    third = write_bundle(tmp_path / "third", 2)
    versions: Versions = []
    damaged = (point_to_a_damaged_one, lambda: "stays" in caplog.text)
    follow(pointer, versions, damaged, (lambda: promoted(third, pointer), lambda: len(versions) == 2))
    assert versions == [("v0", None), ("v2", "v0")]
    (error,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "bundle v0 stays: UserError: bundle" in error
    assert "lacks backbone.safetensors" in error


@pytest.mark.parametrize(("error", "tries"), [(OSError, 3), (RuntimeError, 1)], ids=["transient", "permanent"])
def test_only_transient_errors_are_tried_again(tmp_path, pointer, monkeypatch, error, tries):
    tried: list[str] = []

    def engine(bundle: Bundle) -> Engine:
        tried.append(bundle.manifest.version)
        if 0 < tried.count("v1") < 3:
            raise error("away")
        return Engine(bundle)

    monkeypatch.setattr("mtrec_ray.serving.pointer.Engine", engine)
    second = write_bundle(tmp_path / "second", 1)
    versions: Versions = []
    expected: Versions = [("v0", None), ("v1", "v0")][: 1 + (tries == 3)]
    move = (lambda: move_pointer(str(pointer), Bundle.open(str(second))), lambda: len(tried) > tries)
    follow(pointer, versions, move, (lambda: None, lambda: len(versions) >= len(expected)))
    assert tried == ["v0", *["v1"] * tries]
    assert versions == expected


def test_rebuilt_bundle_is_served_after_its_promotion(tmp_path, pointer):
    def refused() -> None:
        with pytest.raises(UserError, match="is version v1, but v0 was promoted: promote it again"):
            LiveEngine(str(pointer))

    versions: Versions = []
    first = tmp_path / "first"
    again = (lambda: promoted(first, pointer, against_live=False), lambda: len(versions) == 2)
    follow(pointer, versions, (lambda: rebuild(first), lambda: True), (refused, lambda: True), again)
    assert versions == [("v0", None), ("v1", "v0")]
    with pytest.raises(UserError, match="nothing to roll back"):
        rollback(RollbackConfig(pointer=str(pointer)))


def test_pointer_ends_in_json():
    pointers = ["live.json", "s3://b/live.json", "s3://b/live.json?endpoint_override=localhost:9000"]
    assert [is_pointer(uri) for uri in [*pointers, "bundle", "s3://b/bundle?region=x.json"]] == [True] * 3 + [False] * 2
