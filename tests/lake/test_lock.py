"""Two processes that write one lake: the first ends it whole, the second is refused at once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtrec_ray.errors import TryAgain
from mtrec_ray.lake import build, embed
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.config import BuildOptions, EmbedConfig, LakeConfig
from mtrec_ray.lake.embed import embed_lake
from mtrec_ray.lake.inspect import check_lake
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.write import write_lock
from mtrec_ray.sources.source import make_source
from mtrec_ray.streams.ordered import LocalReader
from tests.streams.lakes import random_rows, write_lake

HOLDER = """
import sys
from mtrec_ray.lake import build, embed
from mtrec_ray.streams.ordered import LocalReader
from tests.lake import test_lock

def map_tasks(*arguments, **options):
    print("working", flush=True)
    sys.stdin.readline()
    yield from LocalReader().map(*arguments, **options)

build.map_tasks = embed.map_tasks = map_tasks
getattr(test_lock, sys.argv[1])(sys.argv[2])
"""


def build_here(out: str) -> None:
    settings = {"users": 60, "titles": 20, "territories": 4, "days": 20}
    build_lake(make_source("synthetic", settings), out, BuildOptions(num_buckets=2, overwrite=True))


def embed_here(out: str) -> None:
    embed_lake(EmbedConfig.model_validate({"lake": out, "text": {"model": None}, "interactions": {"width": 4}}))


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    monkeypatch.setattr(build, "map_tasks", LocalReader().map)
    monkeypatch.setattr(embed, "map_tasks", LocalReader().map)
    monkeypatch.setattr("mtrec_ray.lake.inspect.map_tasks", LocalReader().map)


@pytest.mark.parametrize(
    ("first", "second"), [("embed_here", embed_here), ("build_here", build_here), ("embed_here", build_here)]
)
def test_second_writer_is_refused_and_the_lake_of_the_first_is_whole(tmp_path, first, second):
    out = str(tmp_path / "lake")
    if first == "embed_here":
        write_lake(tmp_path / "lake", *random_rows(60), 2, embedded=False)
    command = [sys.executable, "-c", HOLDER, first, out]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "working\n"
        for _ in range(2):
            with pytest.raises(TryAgain, match=re.escape(f"process {holder.pid} on ")):
                second(out)
        holder.communicate("\n" * 10, timeout=120)
        assert holder.returncode == 0
    assert check_lake(LakeConfig(lake=out)).unlisted == []
    assert bool(Lake.open(out).manifest.embeddings.num_folds) == (first == "embed_here")


def test_lock_of_a_killed_process_is_free_and_its_file_is_removed(tmp_path):
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / ".lock").write_text("process 1 on elsewhere")
    with write_lock(str(tmp_path / "lake")):
        assert (tmp_path / "lake" / ".lock").read_text() != "process 1 on elsewhere"
        with pytest.raises(TryAgain), write_lock(str(tmp_path / "lake")):
            pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), write_lock(str(tmp_path / "lake")):
        (tmp_path / "lake" / "users" / "none" / "part").mkdir()
    assert list(tmp_path.iterdir()) == []
