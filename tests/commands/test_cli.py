"""The command line: exit codes, and what goes to stdout and stderr."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from socket import gaierror
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import yaml
from rich.console import RenderableType

from mtrec_ray.__main__ import explain
from mtrec_ray.console import facts_table
from mtrec_ray.errors import TryAgain, UserError
from tests.streams.lakes import random_rows, write_lake

BUILD = ["lake", "build", "synthetic"]
SMALL = {"users": 300, "territories": 4, "titles": 30, "days": 20, "user_width": 8, "title_width": 8}
SETTINGS = [part for key, value in SMALL.items() for part in ("--set", f"source.{key}={value}")]
SETTINGS += ["--set", "build.num_buckets=2"]


def mtrec(*arguments: str, cwd: Path | None = None, more: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {**more}
    command = [sys.executable, "-m", "mtrec_ray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=environment)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["pairs", "show", "lake", "--set", "sample.alpha=0"], "sample.alpha = 0.0 must be above 0"),
        ([*BUILD, "--out", "lake", "--set", "source.userz=3"], "userz"),
        ([*BUILD, "--out", "lake", "--set", "build.num_bucketz=3"], "did you mean 'build.num_buckets'"),
        (["lake", "build", "netflix", "--out", "lake"], "unknown source 'netflix': there are synthetic"),
        (BUILD, "--out LAKE"),
        (["lake", "build"], "setting 'dataset' is required: give it with SOURCE"),
        (["lake", "show", "nowhere"], "no lake at 'nowhere': lake.json is missing; build one with `mtrec lake build`"),
        (["pairs", "show", "nowhere"], "build one with `mtrec lake build`"),
        (["train", "propensity", "--lake", "lake"], "setting 'name' is required: give it with --name"),
        (["train", "propensity", "--lake", "x", "--name", "y", "--model", "deep"], "setting 'kind' = 'deep'"),
        (["train", "propensity", "--config", "nowhere.yaml"], "--config nowhere.yaml: No such file"),
        (["search", "propensity", "--lake", "l", "--name", "s"], "'space' is required: write it in a YAML file"),
        (["runs", "show", "foo"], "no run at 'runs/foo', run.json is missing: `mtrec runs list` names the runs"),
        (["lake", "shew"], "No such command 'shew'. Did you mean 'show'? (see `mtrec lake --help`)"),
        (["lake", "build", "--dry"], "No such option '--dry'"),
        (["lake", "show", "one", "two"], "Got unexpected extra argument (two)"),
        ([*BUILD, "--out", "lake", "--download"], "--download has no effect with source 'synthetic'"),
        (["quickstart", "--set", "train.runner.workers=two"], "setting 'runner.workers' = 'two'"),
        (["quickstart", "--set", "train.runner=null"], "setting 'runner' = None"),
        (["quickstart", "--set", "train.model=null", "--set", "train.optim=3"], "setting 'optim' = 3"),
        (["quickstart", "--set", "evaluate.num_bootstrap=1"], "setting 'num_bootstrap' = 1"),
        (["quickstart", "--set", "evaluate.runs=[a]"], "evaluate.runs has no effect: the quickstart sets it"),
        (["quickstart", "--set", "backbone.name=b"], "backbone.name has no effect"),
        (["quickstart", "--set", "source=movielens"], "source = 'movielens' must be a section"),
        (["quickstart", "--set", "source.userz=9"], "did you mean 'source.users'"),
        (["quickstart", "netflix"], "setting 'dataset' = 'netflix'"),
        (["quickstart", "--set", "audit.run=a"], "audit.run has no effect"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_user_errors_end_with_code_2_and_one_line(run, arguments, named, tmp_path):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.strip().startswith("error: ")
    assert named in err
    assert all(line.startswith(("error: ", "setting ")) for line in err.strip().splitlines())  # one for each setting
    assert list(tmp_path.iterdir()) == []
    code, out, _ = run(*arguments, "--json")
    assert (code, json.loads(out)) == (2, {"error": err.strip().removeprefix("error: "), "exit_code": 2})


@pytest.mark.parametrize(
    "arguments",
    [
        ["lake", "check", "nowhere"],
        ["lake", "build", "rechorus", "--raw", "nowhere", "--out", "lake"],
        ["train", "backbone", "--lake", "nowhere", "--name", "b"],
        ["train", "propensity", "--lake", "nowhere", "--name", "p", "--model", "mtl"],
        ["train", "eliminators", "--backbone", "nowhere", "--name", "e"],
        ["audit", "nowhere"],
        ["bundle", "nowhere", "--out", "bundle"],
        ["evaluate", "propensity", "nowhere"],
        ["store", "load", "nowhere", "--store", "store"],
    ],
    ids=" ".join,
)
def test_missing_inputs_are_reported_before_ray_starts(run, arguments, monkeypatch):
    monkeypatch.setattr("mtrec_ray.lake.cluster._start_ray", lambda _: pytest.fail("Ray was started"))
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "nowhere'" in err


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_with_code_130_and_a_kill_with_143(run, monkeypatch, number, expected):
    monkeypatch.setattr("mtrec_ray.lake.inspect.check_lake", lambda *_, **__: signal.raise_signal(number))
    code, out, err = run("lake", "check", "lake")
    assert (code, out) == (expected, "")
    assert "resumes from what is saved" in err
    code, out, _ = run("lake", "check", "lake", "--json")
    assert (code, json.loads(out)["exit_code"]) == (expected, expected)


def test_ray_does_not_start_by_itself_in_a_leftover_thread():
    """A thread that outlives the session after an interrupt would start it."""
    script = (
        "import sys; from mtrec_ray.__main__ import main; sys.argv = ['mtrec', 'nothing']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "import ray; ray.init = lambda: sys.exit('Ray was started'); ray.put(1)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert "Ray has not been started yet" in ended.stderr


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"format_version": 2, "kind": "backbone"}, "is of kind backbone, not eliminators: choose another run"),
        ({"format_version": 1, "kind": "eliminators"}, "has format version 1, this mtrec_ray reads 2: train it again"),
        ({"format_version": 2, "kind": "eliminators", "status": "over"}, "is damaged (status: Input should be"),
    ],
)
def test_run_of_another_kind_or_version_is_refused(run, tmp_path, document, message):
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "run.json").write_text(json.dumps(document))
    code, _, err = run("audit", "runs/r")
    assert (code, message in err) == (2, True)


def test_config_reads_what_print_config_printed(run, tmp_path):
    _, first, _ = run(*BUILD, *SETTINGS, "--on-bad-rows", "quarantine", "--print-config")
    document = yaml.safe_load(first)
    assert document["source"]["users"] == 300
    assert document["source"]["taste_scale"] == 2.0
    assert document["build"]["on_bad_rows"] == "quarantine"
    (tmp_path / "config.yaml").write_text(first)
    _, again, _ = run(*BUILD, "--config", "config.yaml", "--print-config")
    assert again == first


@pytest.mark.parametrize("option", ["--model", "--kind"])
def test_options_set_their_settings(run, option):
    flags = ["--lake", "l", "--name", "n", option, "mtl", "--groups", "each", "--workers", "2", "--seed", "3"]
    _, out, _ = run("train", "propensity", *flags, "--incremental", "--set", "optim.lr=0.5", "--print-config")
    document = yaml.safe_load(out)
    assert (document["kind"], document["model"]["groups"], document["runner"]["workers"]) == ("mtl", "each", 2)
    assert (document["seed"], document["incremental"], document["optim"]["lr"]) == (3, True, 0.5)


class FakeResult:
    def document(self) -> dict[str, Any]:
        return {"lake": "Amélie №"}

    def tables(self) -> list[RenderableType]:
        return [facts_table("Amélie №", {"lake": "Amélie №"})]


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`command`, in which M stands for a `mtrec` that shows a lake named Amélie №."""
    script = f'M() {{ {sys.executable} -c "$SHOW" "$@"; }}; set -o pipefail; {command}'
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        env=os.environ | {"SHOW": SHOW} | environment,
        timeout=100,
        encoding="utf-8",
    )


SHOW = """
import os, subprocess
import mtrec_ray.lake.inspect
from mtrec_ray.__main__ import main
from tests.commands.test_cli import FakeResult

def show(*_, **__):
    if "NOISE" in os.environ:
        print("from a library")
        os.write(1, b"from C\\n")
        subprocess.run(["echo", "from a child"], check=True)
    return FakeResult()

mtrec_ray.lake.inspect.show_lake = show
main()
"""


def test_stdout_holds_one_json_object_whatever_else_is_printed():
    done = shell("M lake show x --json -v", NOISE="1")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"lake": "Amélie №"})
    assert set(done.stderr.splitlines()) == {"INFO mtrec_ray.stdio: from a library", "from C", "from a child"}


@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        ("M lake show x | head -1", 0, "Amélie №", ""),
        ("M lake show x --json | true", 0, "", ""),
        ("M --help | true", 0, "", ""),
        ("M lake show x >&- 2>&- <&-", 0, "", ""),
        ("M lake show x > /dev/full", 2, "", "error: cannot write to stdout: No space left on device"),
        ("M --help > /dev/full", 2, "", "error: cannot write to stdout: No space left on device"),
        ("M lake shew 2> /dev/full", 2, "", ""),
        ("M lake shew --json > /dev/full", 2, "", "error: No such command 'shew'."),
    ],
)
def test_standard_streams_may_be_closed_full_or_read_no_further(command, code, out, err):
    done = shell(command)
    assert (done.returncode, done.stdout.strip()) == (code, out)
    assert len(done.stderr.splitlines()) == bool(err)
    assert done.stderr.startswith(err)


def test_letters_that_the_encoding_lacks_are_printed_as_escapes():
    done = shell("M lake show x", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Am\\xe9lie \\u2116" in done.stdout
    assert "Am\\xe9lie" in shell("M lake build Amélie", PYTHONIOENCODING="ascii").stderr


def test_a_defect_is_one_line_that_names_a_log_file(run, monkeypatch, tmp_path):
    monkeypatch.setattr("mtrec_ray.lake.inspect.show_lake", lambda *_, **__: {}["Amélie"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = run("lake", "show", "x", "--json")
    (log,) = tmp_path.glob("*.log")
    assert (code, json.loads(out)["exit_code"]) == (1, 1)
    assert err == f"error: this is a defect of mtrec_ray, please report it: KeyError: 'Amélie'; details are in {log}\n"
    assert "Traceback" in log.read_text()
    monkeypatch.setattr("tempfile.tempdir", "/proc/none")
    code, _, err = run("lake", "show", "x")
    assert (code, len(err.splitlines()), "so set TMPDIR to see the details" in err) == (1, 1, True)


@pytest.mark.parametrize("error", [EOFError("Compressed file ended"), BrokenPipeError(32, "Broken pipe")], ids=repr)
def test_errors_of_a_job_that_click_would_take_for_an_interrupt_are_reported(run, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("mtrec_ray.lake.inspect.show_lake", fail)
    code, _, err = run("lake", "show", "x")
    assert (code, str(error) in err) == (75 if isinstance(error, ConnectionError) else 1, True)


def test_help_of_a_process_goes_to_stdout():
    done = mtrec("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "quickstart" in done.stdout


def test_an_error_of_a_process_goes_to_stderr_and_json(tmp_path):
    done = mtrec("pairs", "show", "lake", "--json", "--set", "sample.alfa=3", cwd=tmp_path)
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["exit_code"] == 2
    assert "unknown setting 'sample.alfa'; did you mean 'sample.alpha'?" in document["error"]
    assert document["error"] in done.stderr


@pytest.mark.ray
def test_a_build_prints_one_json_object_though_ray_starts_late_and_home_is_read_only(tmp_path):
    late = {"RAY_gcs_server_port_wait_time_s": "0", "HOME": "/proc/none"}
    done = mtrec(*BUILD, "--out", str(tmp_path / "lake"), *SETTINGS, "--json", more=late)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["counts"]["users"] == 300
    assert document["source"] == "synthetic"
    assert "buckets" in done.stderr
    assert "Ray did not start in time; trying once more with a longer limit" in done.stderr


@pytest.mark.ray
@pytest.mark.long
def test_a_memory_threshold_below_present_use_ends_with_code_75(tmp_path):
    done = mtrec(
        *BUILD, "--out", str(tmp_path / "lake"), *SETTINGS, "--json", more={"RAY_memory_usage_threshold": "0.01"}
    )
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_code"]) == (75, 75)
    assert "memory is short" in document["error"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestInThisProcess:
    """Jobs on the Ray session of the tests, through the same entry point."""

    @pytest.fixture(scope="class")
    def lake(self, tmp_path_factory) -> str:
        from tests.tuning.conftest import build_here

        return build_here(tmp_path_factory.mktemp("cli") / "lake", 2, **SMALL).uri

    def test_shown_users_of_territories_add_up(self, lake, run):
        code, out, _ = run("lake", "show", lake, "--json")
        document = json.loads(out)
        assert code == 0
        assert sum(row["users"] for row in document["territories"]) == document["counts"]["users"] == 300

    def test_embeddings_with_a_window_are_plain_json(self, run, tmp_path):
        lake = write_lake(tmp_path / "lake", *random_rows(60), 1, embedded=False).uri
        settings = ["--set", "text.model=null", "--set", "interactions.width=4"]
        for command in (["embed", lake, *settings], ["show", lake]):
            code, out, _ = run("lake", *command, "--json")
            assert (code, json.loads(out)["embeddings"]["window_end"]) == (0, "2022-04-01T00:00:00Z")

    def test_a_good_lake_is_shown_as_a_table_and_passes_its_check(self, lake, run):
        code, out, _ = run("lake", "show", lake)
        assert (code, "Territories" in out, "synthetic" in out) == (0, True, True)
        code, out, _ = run("lake", "check", lake, "--json")
        assert (code, json.loads(out)["ok"]) == (0, True)

    def test_pairs_as_json_add_up(self, lake, run):
        code, out, _ = run("pairs", "show", lake, "--json", "--set", "sample.alpha=2")
        document = json.loads(out)
        assert (code, document["alpha"], document["all"]["users"]) == (0, 2.0, 300)
        for name, total in document["all"].items():
            assert sum(counts[name] for counts in document["territories"].values()) == total, name
        assert document["all"]["negatives"] == pytest.approx(2 * document["all"]["positives"], rel=0.02)

    def test_an_existing_lake_is_neither_overwritten_nor_embedded_again(self, lake, run):
        build, embed = [*BUILD, "--out", lake, *SETTINGS], ["lake", "embed", lake]
        for arguments, fix in ((build, "--overwrite"), (embed, "overwrite=true")):
            code, out, err = run(*arguments)
            assert (code, out, fix in err) == (2, "", True)


def caused_by(cause: BaseException) -> UserError:
    error = UserError("cannot be read")
    error.__cause__ = cause
    return error


def test_the_cause_of_an_error_decides_its_exit_code():
    wrapped = RuntimeError("a task failed")
    wrapped.__cause__ = UserError("alpha = 0")
    assert explain(wrapped) == (2, "alpha = 0")
    assert explain(KeyError("x"))[0] == 1
    assert explain(OSError(5, "input/output error"))[0] == 1
    full = OSError(28, "No space left on device", "/runs/bb/run.json")
    assert explain(full) == (2, "[Errno 28] No space left on device: '/runs/bb/run.json'")
    assert explain(PermissionError(13, "Permission denied", "runs"))[0] == 2
    missing = FileNotFoundError(2, "No such file or directory", "lake/events/part.parquet")
    missing.__cause__ = of_task = RuntimeError("a task failed")  # how `map_tasks` raises it
    of_task.cause = missing  # pyright: ignore[reportAttributeAccessIssue]
    assert explain(missing) == (2, "[Errno 2] No such file or directory: 'lake/events/part.parquet'")
    lost = RuntimeError("training failed")  # how Ray Train reports a failed checkpoint of a worker
    lost.worker_failures = {0: OSError(28, "No space left on device")}  # pyright: ignore[reportAttributeAccessIssue]
    code, message = explain(lost)
    assert (code, message.split(": ")[0]) == (2, "[Errno 28] No space left on device")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TryAgain("the lake is being written"), 75),
        (ConnectionRefusedError(111, "Connection refused"), 75),
        (caused_by(TimeoutError("timed out")), 75),
        (caused_by(URLError(gaierror(-3, "Temporary failure in name resolution"))), 75),
        (caused_by(HTTPError("http://x", 503, "Service Unavailable", Message(), None)), 75),
        (caused_by(HTTPError("http://x", 404, "Not Found", Message(), None)), 2),
        (OSError("When reading 'x' in bucket 'b': AWS Error NETWORK_CONNECTION during HeadObject operation"), 75),
        (OSError("When reading 'x' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject operation"), 2),
    ],
    ids=lambda value: str(getattr(value, "__cause__", None) or value)[:40],
)
def test_what_passes_ends_with_code_75(error, code):
    assert explain(error)[0] == code
