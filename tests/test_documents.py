"""The documents: every command block runs, and prints what the document shows."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from mtrec_ray.commands.app import COMMANDS, app
from tests.documents import RUN, DocumentError, blocks, missing_lines, run_document

ROOT = Path(__file__).parents[1]
FOLDERS = ("mtrec_ray", "serving", "tuning")
DOCUMENTS = [f"{folder}/README.md" for folder in FOLDERS if (ROOT / folder / "README.md").exists()]


@pytest.mark.ray
@pytest.mark.parametrize("name", DOCUMENTS)
def test_short_blocks_run(name, tmp_path):
    assert run_document(ROOT / name, tmp_path, with_long=False)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_all_blocks_run(name, tmp_path):
    count = run_document(ROOT / name, tmp_path, with_long=True)
    assert count == sum(block.runs for block in blocks((ROOT / name).read_text()))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_block_names_its_language(name):
    found = blocks((ROOT / name).read_text())
    assert found
    assert not [block.line for block in found if block.language not in (*RUN, "text", "yaml", "csv")]
    assert not [block.line for block in found if block.mark == "file" and block.language in RUN]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files(name):
    path = ROOT / name
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert not [link for link in links if not (path.parent / link).exists()]


COMMAND_FILES = {
    "search.yaml": "space: {optim.lr: {low: 0.001, high: 0.01}}",
    "lambda.yaml": "space: {adversary.weight: {low: 0.1, high: 1.0}}",
    "lake.yaml": "source: {events: events.csv}",
}
"""Files that the README's list of commands names."""


def readme_commands() -> list[list[str]]:
    """Words of each `mtrec` command that the README shows."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    lines = [
        line.partition(" # ")[0]
        for block in blocks(text)
        if block.language == "bash"
        for line in block.code.split("\n")
    ]
    parts = [re.sub(r"\[.*?\]", "", part).split() for line in lines for part in re.split(r";|&&", line)]
    words = [part[part.index("mtrec_ray") :] if "mtrec_ray" in part else part for part in parts]
    return [part[1:] for part in words if part[:1] in (["mtrec"], ["mtrec_ray"])]


def test_the_readme_has_commands():
    assert len(readme_commands()) > 20


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_commands_of_the_readme_have_valid_settings(words, tmp_path, monkeypatch):
    """Each is read as far as its settings; the how-tos run them."""
    monkeypatch.chdir(tmp_path)
    for name, content in COMMAND_FILES.items():
        (tmp_path / name).write_text(content)
    name = " ".join(words[: 2 if " ".join(words[:2]) in COMMANDS else 1])
    with_settings = "print_config" in COMMANDS[name].common
    found = CliRunner().invoke(app, [*words, "--print-config" if with_settings else "--help"])
    assert found.exit_code == 0, found.output


class TestRunner:
    """`run_document` on documents with a known outcome."""

    @pytest.fixture
    def run(self, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()

        def run(text: str, with_long: bool = False) -> int:
            (tmp_path / "README.md").write_text(text)
            return run_document(tmp_path / "README.md", folder, with_long)

        return run

    def test_blocks_follow_each_other_in_one_folder(self, run):
        files = "<!-- file: a.csv -->\n```csv\nx,y\n```\n"
        copy = "```bash\ncp a.csv b.csv\n```\n```python\nprint(open('b.csv').read())\n```\n"
        assert run(f"{files}{copy}```text\nx,y\n```\n") == 2

    def test_a_failing_command_is_named_with_its_line(self, run):
        with pytest.raises(DocumentError, match=r"README.md, line 4: exit code 3"):
            run("A word\n\n```bash\n(exit 3)\ntrue\n```\n")

    def test_a_failing_pipe_counts(self, run):
        with pytest.raises(DocumentError, match="exit code 1"):
            run("```bash\nfalse | cat\n```\n")

    def test_output_that_differs_is_named(self, run):
        with pytest.raises(DocumentError, match=r"'good morning' is not printed"):
            run("```bash\necho good night\n```\n```text\ngood morning\n```\n")

    def test_long_blocks_and_their_output_wait_for_the_long_test(self, run):
        text = "```bash\ntrue\n```\n<!-- long -->\n```bash\necho a > made; echo 1\n```\n```text\n2\n```\n"
        assert run(text) == 1
        assert run(text, with_long=True) == 2

    def test_what_cannot_run_says_why(self, run):
        assert run("<!-- not run: needs a cluster -->\n```bash\nfalse\n```\n```bash\ntrue\n```\n") == 1
        with pytest.raises(ValueError, match="line 3: 'not run' is none of"):
            run("<!-- not run -->\n```bash\nfalse\n```\n")
        with pytest.raises(ValueError, match="'slow: yes' is none of"):
            run("<!-- slow: yes -->\n```bash\nfalse\n```\n")

    def test_a_server_answers_the_blocks_after_it_and_is_stopped(self, run, tmp_path):
        serve = "echo $$ > pid; echo hello > page; exec python -m http.server 8000"
        read = "from urllib.request import urlopen\nprint(urlopen('http://127.0.0.1:8000/page').read())"
        server = f"<!-- server: http://127.0.0.1:8000 -->\n```bash\n{serve}\n```\n"
        get = f"```python\n{read}\n```\n```text\nb'hello...\n```\n"
        assert run(server + get.replace("```python", "<!-- long -->\n```python")) == 0
        assert run(server + get, with_long=True) == 2
        pid = (tmp_path / "folder" / "pid").read_text().strip()
        assert not Path(f"/proc/{pid}").exists()

    def test_a_server_that_ends_is_named(self, run):
        with pytest.raises(DocumentError, match=r"does not answer:\s+no bundle"):
            run("<!-- server: http://127.0.0.1:8000 -->\n```bash\necho no bundle; exit 2\n```\n", with_long=True)

    def test_a_fence_that_is_not_understood_is_no_silent_gap(self, run):
        with pytest.raises(ValueError, match="4 fences, of which 2 are"):
            run("  ```bash\nfalse\n```\n\n```bash\ntrue\n```\n")


@pytest.mark.parametrize(
    ("expected", "printed", "missing"),
    [
        ("a 1.5 b\n", "x\na   22 b\n", []),  # any number, any spaces
        ("gain +4.7 ±7.2", "gain -12 ±3", []),
        ("first\n...\nlast", "first\nmiddle\nlast", []),
        ("written ... rows", "written /tmp/x 7 rows", []),
        ("last\nfirst", "first\nlast", ["first"]),  # in their order
        ("users 3", "events 3", ["users 3"]),
        ("a\na", "a", ["a"]),  # a line printed once is one
    ],
)
def test_lines_are_compared_without_numbers_and_spaces(expected, printed, missing):
    assert missing_lines(expected, printed) == missing
