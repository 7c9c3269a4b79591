"""The driver of packs, whose training is played here: in what order, how often, and how an interrupt ends it."""

import json
import signal
import subprocess
import sys

DRIVER = """
import json, sys, threading, time
from types import SimpleNamespace

import typer

from mtrec_ray.commands.options import run_job
from mtrec_ray.training import eliminators

begun, may_fail = [], threading.Event()

def train_pack(record, pack, progress):
    begun.append(pack)
    print("begun", pack, flush=True)
    may_fail.wait()
    raise RuntimeError("Ray's session is over")

eliminators.is_done = lambda record, pack: False
eliminators._train_pack = train_pack
packs = {f"pack{number:03d}": [("gender",)] for number in range(3)}
record = SimpleNamespace(packs=packs, config=SimpleNamespace(retries=1))
app = typer.Typer()

@app.command()
def train():
    run_job(lambda progress: eliminators._train_packs(record, 2, progress), as_json=True, ray=False)

try:
    app()
finally:
    if sys.argv[0] == "watch them fail":
        may_fail.set()
        time.sleep(0.5)
    print(json.dumps(begun), flush=True)
"""


def interrupted(argument: str) -> tuple[int, dict, list[str]]:
    """Exit code, what the command says, and what was begun."""
    command = [sys.executable, "-c", f"import sys; sys.argv = [{argument!r}]\n{DRIVER}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert [driver.stdout.readline().strip() for _ in range(2)] == ["begun pack000", "begun pack001"]
        driver.send_signal(signal.SIGINT)
        try:
            out, err = driver.communicate(timeout=60)
        finally:
            driver.kill()
    assert "goes on from what is saved" in err
    said, begun = map(json.loads, out.splitlines())
    return driver.returncode, said, begun


def test_an_interrupt_ends_the_command_while_packs_still_run():
    code, said, begun = interrupted("leave them")
    assert (code, said["exit_code"]) == (130, 130)
    assert begun == ["pack000", "pack001"]


def test_a_pack_that_fails_after_an_interrupt_is_not_tried_again():
    code, _, begun = interrupted("watch them fail")
    assert code == 130
    assert begun == ["pack000", "pack001"]
