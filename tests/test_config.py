"""Settings: the order in which they win, errors that name the key, and nothing lost on the way through YAML."""

from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from mtrec_ray.commands.app import COMMANDS
from mtrec_ray.config import Config, advanced, dump_yaml, load_config, settings_of, validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.models.group_blocks import GROUP_BLOCKS
from mtrec_ray.sources.source import SOURCES, source_config_class
from mtrec_ray.trainers.propensity_config import PropensityConfig

EVERY_CONFIG = [*{command.model: None for command in COMMANDS.values()}, *map(source_config_class, SOURCES)]
NEEDED = ["lake=lake", "name=run"]


def propensity(*settings: str, path: str | None = None, **flags) -> PropensityConfig:
    return load_config(PropensityConfig, path, [*NEEDED, *settings], flags)


@pytest.fixture
def yaml_file(tmp_path):
    def write(document) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
        return str(path)

    return write


def test_precedence_is_file_then_set_then_option_and_an_empty_file_changes_nothing(yaml_file):
    assert propensity(path=yaml_file("# nothing\n")) == propensity()
    path = yaml_file({"seed": 1, "optim": {"lr": 0.1, "epochs": 7, "lanes": 3}})
    config = propensity("optim.lr=0.2", "optim.epochs=8", path=path, **{"optim.lr": 0.3})
    assert (config.seed, config.optim.lanes) == (1, 3)
    assert (config.optim.epochs, config.optim.lr) == (8, 0.3)


def test_the_last_of_two_settings_wins_and_values_are_yaml():
    config = propensity("seed=1", "seed=2", "optim.lr=3e-4", "model.groups=null", "incremental=true")
    assert (config.seed, config.optim.lr, config.incremental) == (2, 3e-4, True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.foo=1", "unknown setting 'optim.foo'; optim has lr, "),
        ("foo=1", "unknown setting 'foo'; see --help"),
        ("optim.epoch=1", "did you mean 'optim.epochs'"),
        ("epochs=1", "did you mean 'optim.epochs'"),
        ("sead=1", "unknown setting 'sead'; did you mean 'seed'"),
        ("optim.lr=fast", "setting 'optim.lr' = 'fast'"),
        ("optim.lr=-1", "setting 'optim.lr' = -1"),
        ("optim.lr=.inf", "setting 'optim.lr' = inf: Input should be a finite number"),
        ("seed=1.5", "setting 'seed' = 1.5"),
        ("seed=-1", "setting 'seed' = -1: Input should be greater than or equal to 0"),
        ("seed=4294967296", "setting 'seed' = 4294967296: Input should be less than 4294967296"),
        ("optim=3", "setting 'optim' = 3"),
        ("sample.alpha=many", "setting 'sample.alpha' = 'many'"),
        ("sample.alpha=-1", "sample.alpha = -1.0 must be above 0"),
        ("name=a b", "setting 'name' = 'a b': use letters, digits and . _ + -"),
        ("sample.test_fraction=1.2", "setting 'sample.test_fraction' = 1.2"),
        ("model.group_block=convolution", "setting 'model.group_block' = 'convolution'"),
        ("runner.workers=9", "runner.workers = 9 needs"),
        ("optim.lr.more=1", "setting 'optim.lr' = {'more': 1}"),
        ("optim.lr", "'optim.lr' is not of the form dotted.key=value"),
        ("optim.lr=[1", "--set optim.lr: '[1' is not YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_key(setting, message):
    with pytest.raises(UserError) as found:
        propensity(setting)
    assert message in str(found.value)
    assert "{'alpha'" not in str(found.value)
    assert len(str(found.value).splitlines()) == 1 or "is not YAML" in message


def test_a_section_below_a_plain_value_is_refused(yaml_file):
    with pytest.raises(UserError, match="'optim' is a plain value, not a section"):
        propensity("optim.lr=1", path=yaml_file({"optim": 3}))


def test_a_missing_setting_is_named_with_its_option():
    with pytest.raises(
        UserError, match=r"'name' is required: give it with --set name=.*\n.*'lake' is required: give it with --lake"
    ):
        load_config(PropensityConfig, None, [], options={"lake": "--lake"})
    with pytest.raises(UserError, match=r"'lake' is required$"):
        validate_config(PropensityConfig, {"name": "run"})


BAD_FILES = {
    "- a\n- b": "not a list",
    "a: [": "is not YAML",
    "5": "not a int",
    "": r"--config /nowhere\.yaml: No such file",
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.items())
def test_a_file_that_holds_no_settings_is_named(yaml_file, content, message):
    path = yaml_file(content) if content else "/nowhere.yaml"
    with pytest.raises(UserError, match=message) as found:
        propensity(path=path)
    assert path in str(found.value)


@pytest.mark.parametrize("setting", ["model.groups=regions", "model.group_block=dense"])
def test_a_setting_without_effect_on_a_baseline_is_refused(setting):
    key = setting.split("=")[0]
    with pytest.raises(UserError, match=f"{key} has no effect on a baseline"):
        propensity(setting, kind="baseline")


def test_best_snapshot_without_validation_users_is_refused():
    with pytest.raises(UserError, match=r"optim\.snapshot = best needs validation users: set sample\.validation_frac"):
        propensity("optim.snapshot=best")
    assert propensity("optim.snapshot=best", "sample.validation_fraction=0.1").optim.snapshot == "best"


@pytest.mark.parametrize("block", GROUP_BLOCKS)
def test_learning_rates_follow_the_parameters_of_each_group_block(block):
    dims = {parameter.dim() > 2 for parameter in GROUP_BLOCKS[block](2, 3).parameters()}
    rates = propensity(**{"model.group_block": block, "optim.lr": 1e-2}).optim.learning_rates(block, aligned=False)
    assert rates == (1e-2, 1e-2, 1e-2 if True in dims else 3e-3)
    for key, in_block in (("optim.block_lr", True in dims), ("optim.block_vector_lr", False in dims)):
        flags: dict[str, Any] = {"model.group_block": block, key: 1e-3}
        if in_block:
            propensity(**flags)
        else:
            with pytest.raises(UserError, match=f"{key} has no effect on {block}: drop it"):
                propensity(**flags)


def test_a_baseline_has_one_learning_rate():
    optim = propensity(kind="baseline").optim
    assert optim.learning_rates(None, aligned=True)[0] == 1e-4
    assert optim.learning_rates(None, aligned=False)[0] == 1e-3
    with pytest.raises(UserError, match=r"optim\.block_lr has no effect on a baseline"):
        propensity("optim.block_lr=0.001", kind="baseline")


def test_mtl_defaults_to_the_papers_block_and_regions():
    config = propensity(**{"model.group_block": "shift"})
    assert (config.model.group_block, config.model.groups) == ("shift", "regions")
    assert propensity().model.group_block == "dense"
    assert propensity(kind="baseline").model.group_block is None


@pytest.mark.parametrize("kind", ["baseline", "mtl"])
def test_the_resolved_config_is_read_back_equal(yaml_file, kind):
    settings = ["window.start=2022-01-01", "window.end=2022-03-01T12:00:00Z", "sample.alpha=auto", "optim.lr=1e-5"]
    config = propensity(*settings, kind=kind)
    path = yaml_file(dump_yaml(config))
    assert load_config(PropensityConfig, path, []) == config


@pytest.mark.parametrize("model", EVERY_CONFIG, ids=lambda model: model.__name__)
def test_every_setting_has_a_key_a_type_and_a_sentence(model):
    rows = list(settings_of(model, "x."))
    assert {row.key for row in rows} == {f"x.{key}" for key in leaf_keys(model)}
    assert [row.key for row in rows if not (row.type_name and row.default and len(row.meaning) > 5)] == []
    assert model.__doc__


def leaf_keys(model: type[BaseModel]) -> list[str]:
    """Dotted keys counted another way: through the JSON schema."""
    schema = model.model_json_schema()

    def walk(node, prefix):
        for name, field in node.get("properties", {}).items():
            inner = field.get("$ref") or next((r["$ref"] for r in field.get("allOf", [])), None)
            if inner:
                yield from walk(schema["$defs"][inner.rsplit("/", 1)[1]], f"{prefix}{name}.")
            else:
                yield prefix + name

    return list(walk(schema, ""))


def test_types_defaults_and_values_of_settings_are_short():
    rows = {row.key: (row.type_name, row.default, row.values) for row in settings_of(PropensityConfig)}
    assert rows["lake"] == ("str", "required", "")
    assert rows["optim.batch_pairs"] == ("int", "8192", "")
    assert rows["incremental"] == ("bool", "false", "")
    assert rows["kind"] == ("baseline | mtl", "mtl", "baseline|mtl")
    assert rows["window.start"] == ("datetime | null", "null", "")
    assert rows["sample.test_fraction"] == ("float", "0.2", "")
    assert rows["sample.alpha"] == ("float | auto", "10.0", "number|auto")
    assert rows["seed"] == ("int", "0", "")


def test_settings_and_whole_sections_can_be_advanced():
    class Inner(Config):
        depth: int = 1

    class Outer(Config):
        plain: int = 1
        rare: int = advanced(2, ge=1)
        inner: Inner = Inner()
        tuned: Inner = advanced(Inner())

    assert [row.key for row in settings_of(Outer) if row.advanced] == ["rare", "tuned.depth"]
    with pytest.raises(UserError, match="setting 'rare' = 0"):
        validate_config(Outer, {"rare": 0})


def test_a_config_cannot_be_changed():
    class Small(Config):
        width: int = 3

    config = validate_config(Small, {"width": 4})
    with pytest.raises(ValueError, match="frozen"):
        config.width = 5  # pyright: ignore[reportAttributeAccessIssue]
