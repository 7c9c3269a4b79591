"""Settings: the order in which they win, errors that name the key, and nothing lost on the way through YAML."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis.strategies import characters, lists, text
from pydantic import BaseModel

from mtrec_ray.commands.app import COMMANDS
from mtrec_ray.config import Config, advanced, dump_yaml, load_config, settings_of, validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.sources.source import SOURCES, source_config_class
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.yaml12 import parse_yaml

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
        ("optim={lr: 1, lr: 2}", "is not YAML: line 1: key 'lr' is on line 1 already: keep one of them"),
        ("runs=data #2", "--set runs: the end of 'data #2' is a YAML comment: put the value in quotes"),
        ("name=5", "setting 'name' = 5: Input should be a valid string, in quotes"),
        ("seed=true", "setting 'seed' = True: Input should be a number"),
        ("seed=1:30:00", "setting 'seed' = '1:30:00'"),
        (
            "window.end=2022-13-01",
            "setting 'window.end' = '2022-13-01': Input should be a valid datetime or date",
        ),
        ("window.start=20220105", "setting 'window.start' = 20220105: write a date or an ISO 8601 time, as 2022"),
        ("window.start='1641340800'", "setting 'window.start' = '1641340800': write a date"),
        ("seed=!!binary aGk=", "could not determine a constructor for the tag"),
    ],
)
def test_a_wrong_setting_is_named_with_its_key(setting, message):
    with pytest.raises(UserError) as found:
        propensity(setting)
    assert message in str(found.value)
    assert "{'alpha'" not in str(found.value)
    assert len(str(found.value).splitlines()) == 1


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
    b"- a\n- b": "must hold `key: value` lines, not a list",
    b"a: [": "is not YAML: line 1: while parsing a flow node",
    b"5": "must hold `key: value` lines, not a int",
    b"1: 2": "1 is no name of a setting",
    b"seed: 1\nsample:\n  tau: 0.5\nsample:\n  alpha: 3\n": "line 4: key 'sample' is on line 2 already: keep one",
    b"sample: {alpha: 1,\n\n alpha: 2}": "line 3: key 'alpha' is on line 1 already",
    b"sample:\n  alpha: 30 # caf\xe9\n": "is not UTF-8 (line 2, byte 0xe9): save it as UTF-8",
    "seed: 1\n".encode("utf-16"): "is not UTF-8 (line 1, byte 0xff)",
    "seed: 1\n".encode("utf-16-le"): "is not YAML: line 1 holds character 0x0",
    b"seed: 1\n---\nseed: 2": "line 2: expected a single document in the stream",
    b"[" * 5000: "nested too deeply",
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.items(), ids=BAD_FILES.values())
def test_a_file_that_holds_no_settings_is_named_with_the_line(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as found:
        propensity(path=str(path))
    assert str(found.value).startswith(f"--config {path}")
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "reason"), [("", "No such file"), ("/nowhere.yaml", "No such file"), ("/", "Is a dir")]
)
def test_a_file_that_cannot_be_read_is_named(path, reason):
    with pytest.raises(UserError, match=f"^--config {path}: {reason}"):
        propensity(path=path)


def test_settings_are_yaml_of_version_1_2(yaml_file):
    class Values(Config):
        texts: list[str]
        numbers: list[int | float]
        flags: list[bool]

    document = """
texts: [NO, yes, on, 1:30:00, 2022-01-05, 1_000, 0b1]
numbers: [0o17, 017, 1e3, 0x1F]
flags: [true, FALSE]
"""
    config = load_config(Values, yaml_file("\ufeff" + document), [])
    assert config.texts == ["NO", "yes", "on", "1:30:00", "2022-01-05", "1_000", "0b1"]
    assert (config.numbers, config.flags) == ([15, 17, 1000.0, 31], [True, False])


NAMES = [
    "NO",
    "1:30",
    "null",
    "0o7",
    "1e3",
    "~",
    "",
    "2022-01-05",
    "0x1F",
    "- a",
    "a: b",
    "a #b",
    "<<",
    "=",
    "Amélie №",
]


@given(lists(text(characters(codec="utf-8"))).map(lambda names: [*NAMES, *names]))
def test_names_are_read_back_as_they_were(names):
    class Names(Config):
        of_list: list[str]
        of_dict: dict[str, str]

    config = Names(of_list=names, of_dict=dict.fromkeys(names, "x"))
    printed = dump_yaml(config)
    assert validate_config(Names, parse_yaml(printed.encode(), "file")) == config
    assert validate_config(Names, yaml.safe_load(printed)) == config


@pytest.mark.parametrize("setting", ["model.groups=regions", "model.group_block=dense"])
def test_a_setting_without_effect_on_a_baseline_is_refused(setting):
    key = setting.split("=")[0]
    with pytest.raises(UserError, match=f"{key} has no effect on a baseline"):
        propensity(setting, kind="baseline")


def test_best_snapshot_without_validation_users_is_refused():
    with pytest.raises(UserError, match=r"optim\.snapshot = best needs validation users: set sample\.validation_frac"):
        propensity("optim.snapshot=best")
    assert propensity("optim.snapshot=best", "sample.validation_fraction=0.1").optim.snapshot == "best"


@pytest.mark.parametrize(("block", "vectors"), [("dense", 1e-2), ("hierarchical", 3e-3)])
def test_learning_rates_of_each_group_block(block, vectors):
    def rates(*settings: str) -> tuple[float, float, float]:
        optim = propensity("optim.lr=0.01", *settings, **{"model.group_block": block}).optim
        return optim.learning_rates(block, aligned=False)

    assert rates() == (1e-2, 1e-2, vectors)
    assert rates("optim.block_lr=0.001") == (1e-2, 1e-3, 1e-3 if block == "dense" else 3e-3)
    assert rates("optim.block_vector_lr=0.02") == (1e-2, 1e-2, 2e-2)


def test_a_baseline_has_one_learning_rate():
    optim = propensity(kind="baseline").optim
    assert optim.learning_rates(None, aligned=True)[0] == 1e-4
    assert optim.learning_rates(None, aligned=False)[0] == 1e-3
    with pytest.raises(UserError, match=r"optim\.block_lr has no effect on a baseline"):
        propensity("optim.block_lr=0.001", kind="baseline")


def test_mtl_defaults_to_the_papers_block_and_regions():
    config = propensity(**{"model.group_block": "hierarchical"})
    assert (config.model.group_block, config.model.groups) == ("hierarchical", "regions")
    assert propensity().model.group_block == "dense"
    assert propensity(kind="baseline").model.group_block is None


@pytest.mark.parametrize("kind", ["baseline", "mtl"])
def test_preset_paper_is_the_papers_model_and_optimiser(kind):
    config = propensity(preset="paper", kind=kind)
    optim, model = config.optim, config.model
    assert (model.d, optim.batch_pairs, optim.snapshot) == (512, 8192, "last")
    assert optim.learning_rates(model.group_block, aligned=True) == (1e-3, 1e-3, 1e-3)
    assert (model.group_block, model.groups) == (("dense", "regions:4") if kind == "mtl" else (None, None))
    given = propensity("sample.alpha=auto", "incremental=true", "optim.epochs=1", preset="paper")  # open in the paper
    assert (given.sample.alpha, given.incremental, given.optim.epochs) == ("auto", True, 1)


def test_groups_of_the_users_own_fit_the_paper():
    assert propensity("model.groups=four.yaml", preset="paper").model.groups == "four.yaml"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model.d=64", 512),
        ("model.group_block=hierarchical", "dense"),
        ("optim.lr=0.0001", 0.001),
        ("optim.block_lr=0.0001", None),
        ("optim.batch_pairs=4096", 8192),
    ],
)
def test_a_setting_that_contradicts_the_preset_is_refused_in_one_line(setting, value):
    with pytest.raises(UserError) as caught:
        propensity(setting, preset="paper")
    contradicts = f"{setting.replace('=', ' = ')} contradicts preset = paper, which has {value}: drop one of them"
    assert str(caught.value) == contradicts


@pytest.mark.parametrize("preset", ["ours", "paper"])
@pytest.mark.parametrize("kind", ["baseline", "mtl"])
def test_the_resolved_config_is_read_back_equal(yaml_file, kind, preset):
    settings = ["window.start=2022-01-01", "window.end=2022-03-01T12:00:00Z", "sample.alpha=auto", "optim.epochs=5"]
    config = propensity(*settings, kind=kind, preset=preset)
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
