"""`--help`: every setting that is not advanced, in few enough lines, legible on narrow and wide terminals."""

import re
from collections.abc import Iterator

import pytest

from mtrec_ray.commands.app import COMMANDS, GROUPS, app
from mtrec_ray.commands.command import JobCommand
from mtrec_ray.config import Setting, settings_of
from mtrec_ray.sources.source import SOURCES

MAX_SETTINGS = 15
INVOCATIONS = [*COMMANDS, *(f"lake build {source}" for source in SOURCES)]


def command_of(invocation: str) -> JobCommand:
    return COMMANDS.get(invocation) or COMMANDS["lake build"]


def settings(invocation: str) -> Iterator[Setting]:
    model, source = command_of(invocation).model, invocation.partition("lake build ")[2]
    return settings_of(model.concrete({"dataset": source}) if source else model)


def help_of(invocation: str, option: str, capsys: pytest.CaptureFixture[str]) -> str:
    app.main([*invocation.split(), option], prog_name="mtrec", standalone_mode=False)
    return capsys.readouterr().out


@pytest.mark.parametrize("invocation", INVOCATIONS)
def test_help_shows_few_settings(invocation):
    assert len([setting.key for setting in settings(invocation) if not setting.advanced]) <= MAX_SETTINGS


def test_summaries_fit_the_list_of_commands():
    summaries = [str(command.help).partition(".")[0] for command in COMMANDS.values()]
    assert [text for text in [*summaries, *GROUPS.values()] if len(text) > 45] == []


@pytest.mark.parametrize("invocation", INVOCATIONS)
def test_papers_are_named_before_they_are_cited_by_letter(invocation, capsys):
    text = help_of(invocation, "--help-all", capsys) if "help_all" in command_of(invocation).common else ""
    for letter, authors in (("A", "Gampa et al. 2023"), ("B", "Wu et al. 2022")):
        before, cited, _ = " ".join(text.split()).partition(f"paper {letter}")
        assert not cited or authors in before


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("invocation", ["", "lake", *INVOCATIONS])
def test_help_fits_the_terminal_and_shows_no_python(invocation, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_of(invocation, "--help", capsys).splitlines()
    assert [line for line in lines if len(line) > columns] == []
    assert not {"Annotated", "FieldInfo", "Literal["} & set(re.findall(r"\w+\[?", "\n".join(lines)))


@pytest.mark.parametrize("invocation", [name for name in INVOCATIONS if "help_all" in command_of(name).common])
def test_help_names_settings_and_help_all_the_advanced_ones_too(invocation, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    found = list(settings(invocation))
    words = [set(re.findall(r"[\w.]+", help_of(invocation, option, capsys))) for option in ("--help", "--help-all")]
    options = {word.strip("-").replace("-", "_"): key for word, key in command_of(invocation).keys.items()}
    by_name = {key for name, key in options.items() if name == key or name.isupper()}
    keys = {setting.key: setting.advanced for setting in found if setting.key not in by_name}
    assert {key for key, is_advanced in keys.items() if not is_advanced} <= words[0]
    assert set(keys) <= words[1]


def test_a_source_shows_its_own_settings_alone(capsys):
    assert "source.holdout (qrel)" in help_of("lake build xmarket", "--help", capsys)
    everything = help_of("lake build", "--help", capsys)
    assert "source.holdout" not in everything
    assert re.search(r"\n  rechorus +How ReChorus files become a lake", everything)
    assert "build.num_buckets (null)" in help_of("lake build", "--help-all", capsys)
