"""metrics.jsonl: a JSON object a line: `step`, `seconds`, `time` and the step's figures."""

import json
from typing import Any

from mtrec_ray.files import finite, join, read_file, write_file

METRICS_FILE = "metrics.jsonl"
KEYS = ("step", "seconds", "time")  # keys of each line; all others are figures


def read_metrics(uri: str) -> list[dict[str, Any]]:
    """Lines of the run folder `uri`; none without a file. Skips lines cut by a killed process."""
    try:
        lines = read_file(join(uri, METRICS_FILE)).splitlines()
    except FileNotFoundError:
        return []
    rows = map(_decode, lines)
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def keep_until(uri: str, step: int) -> list[dict[str, Any]]:
    """Remove lines of later steps, all if `step` is 0; returns those that stay."""
    rows = read_metrics(uri)
    kept = [row for row in rows if row["step"] <= step] if step else []
    if rows:
        write_file(join(uri, METRICS_FILE), b"".join(map(encode, kept)))
    return kept


def encode(row: dict[str, Any]) -> bytes:
    """One line; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(finite(row)).encode() + b"\n"


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
