"""Language rules of CONTRIBUTING.md, read from the source: summaries, one meaning a name, retired words."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = [path for folder in ("mtrec_ray", "serving", "tuning") for path in sorted((ROOT / folder).glob("**/*.py"))]
MAX_SUMMARY = 88
RETIRED = (
    r"trainee|look(?:s|ed)? at the validation|next look|keep_share|ndcg_least|stands on|stand on|stands_on|or_begun|"
    r"\bbegun\b|gone on with|go on with|goes on from|goes on with|\bmend(?:s|ed)?\b|sample_lots|\blots\b|open users|"
    r"open half|open_half|attacked_fraction|is_attacked|without_attacked|WindowBatch|WindowPlan|EliminatorPack|"
    r"ProgressBoard|\bPackRows\b|\bis told\b|\bare told\b|told of\b|keeps? readable|put aside|\baside\b|"
    r"\b(?:its|their|the) bars?\b|\bmoments?\b|\bprice\b"
)
"""Words that meant too much, each with a plain one in its place (CONTRIBUTING.md, glossary)."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in PRODUCT:
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_docstrings_start_with_a_short_summary():
    long = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                summary = (ast.get_docstring(node) or "").split("\n")[0]
                if len(summary) > MAX_SUMMARY:
                    long.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)} {summary}")
    assert not long


def test_public_names_are_defined_once():
    found = defaultdict(set)
    for path, tree in trees():
        if path.name == "api.py":  # names the jobs' functions once more
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                found[node.name].add(str(path.relative_to(ROOT)))
    assert not {name: sorted(files) for name, files in found.items() if len(files) > 1}


def test_retired_words_stay_retired():
    retired = re.compile(RETIRED, re.IGNORECASE)
    documents = [*PRODUCT, ROOT / "README.md", *(ROOT / "serving" / "page").glob("*")]
    found = [
        f"{path.relative_to(ROOT)}:{number} {match.group()}"
        for path in documents
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := retired.search(line))
    ]
    assert not found
