"""`lake.json`, and `Lake`, the only way to read a lake.

A lake is a folder (any `pyarrow.fs` URI) of Parquet files and one `lake.json` that lists them with their SHA-256.
Readers see listed files only: replacing `lake.json` is what commits a build or a new set of embeddings.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.errors import UserError, check_version
from mtrec_ray.files import absolute, join, read_json, resolve
from mtrec_ray.sources.calendar import Calendar as Calendar  # for rooms that import no source
from mtrec_ray.sources.source import DataFacts

FORMAT_VERSION = 1
MANIFEST_NAME = "lake.json"
PROJECTION = "projection"  # column of the titles of a lake with interaction vectors and an order of time


class LakeFile(BaseModel, frozen=True, extra="forbid"):
    """One Parquet file, its path relative to the lake."""

    path: str
    rows: int
    sha256: str


class Manifest(DataFacts, frozen=True):
    """The content of `lake.json`."""

    format_version: int = FORMAT_VERSION
    num_buckets: int
    counts: dict[str, int]  # Rows of each table
    quarantined: dict[str, int] = {}  # Rejected rows by `table/reason`
    files: dict[str, list[LakeFile]]  # Table (`users`, ..., optional `candidates`) -> its files, sorted by path

    @property
    def content_hashes(self) -> dict[str, str]:
        """One SHA-256 per table over its files' paths and hashes."""
        listed = {name: "\n".join(f"{f.path} {f.sha256}" for f in files) for name, files in self.files.items()}
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in listed.items()}

    @property
    def lake_hash(self) -> str:
        """Identity of all that decides the result of a run: tables and what readers use."""
        origin = dict.fromkeys(["source", "notes", "quarantined", "files", "raw_files", "left_out", "event_days"], True)
        decisive = self.model_dump(mode="json", exclude=origin | {"embeddings": {"description"}})
        decisive |= {"attributes": list(self.attributes.items()), "content": self.content_hashes}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def listed_paths(self) -> set[str]:
        """Paths of all files of the lake, `lake.json` included."""
        return {file.path for files in self.files.values() for file in files} | {MANIFEST_NAME}

    def files_of(self, table: str, bucket: int | None = None) -> list[LakeFile]:
        """Files of a whole table, or of one bucket of it."""
        folder = table if bucket is None else bucket_folder(table, bucket)
        return [file for file in self.files.get(table, []) if file.path.startswith(f"{folder}/")]


@dataclass(frozen=True)
class Lake:
    """An opened lake: its manifest and its tables, bucket by bucket. Picklable."""

    uri: str
    manifest: Manifest

    @staticmethod
    def open(uri: str) -> "Lake":
        """Read `lake.json`; UserError: no lake there, a damaged one, or another version."""
        try:
            document = read_json(join(str(uri), MANIFEST_NAME))
        except FileNotFoundError as error:
            fix = "build one with `mtrec lake build`"
            raise UserError(f"no lake at {uri!r}: {MANIFEST_NAME} is missing; {fix}") from error
        version = document.get("format_version", FORMAT_VERSION) if isinstance(document, dict) else FORMAT_VERSION
        check_version(f"lake {uri!r}", version, FORMAT_VERSION, "build it again")
        try:
            return Lake(absolute(str(uri)), Manifest.model_validate(document))
        except ValidationError as error:
            raise UserError(f"lake {uri!r}: {MANIFEST_NAME} is damaged: {error}") from error

    def read(
        self, table: str, bucket: int | None = None, columns: Sequence[str] = (), without: Sequence[str] = ()
    ) -> pa.Table:
        """A table or one bucket of it, rows in stored order: `columns`, or all but `without`."""
        files = self.manifest.files_of(table, bucket)
        if not files:
            where = "" if bucket is None else f", bucket {bucket}"
            raise UserError(f"lake {self.uri!r} has no table {table!r}{where}")
        fs, root = resolve(self.uri)
        parts = []
        for file in files:
            try:
                with fs.open_input_file(f"{root}/{file.path}") as stream:
                    parquet = pq.ParquetFile(stream)
                    names = columns or [name for name in parquet.schema_arrow.names if name not in without]
                    parts.append(parquet.read(columns=list(names)))
            except (pa.ArrowInvalid, OSError) as error:
                where = f"lake {self.uri!r} is damaged at {file.path}"
                raise UserError(f"{where}: {error}; `mtrec lake check` lists all damage") from error
        return pa.concat_tables(parts).combine_chunks()

    @cached_property
    def titles(self) -> pa.Table:
        """The titles without embeddings; a title's row is its index everywhere."""
        return self.read("titles", without=["embedding", PROJECTION])

    @property
    def title_ids(self) -> pa.Array:
        return self.titles["title_id"].combine_chunks()

    def title_embeddings(self) -> np.ndarray:
        """(titles, title_width) float16, rows as in `titles`."""
        return fixed_width_matrix(self.read("titles", columns=["embedding"])["embedding"])

    @cached_property
    def title_projection(self) -> np.ndarray:
        """(titles, interaction_width) float32: a user's history, scaled, times this is its vector."""
        found = self.read("titles", columns=[PROJECTION])
        if PROJECTION not in found.column_names:
            raise UserError(f"lake {self.uri!r} was embedded by another version: run `mtrec lake embed` again")
        return fixed_width_matrix(found[PROJECTION], np.float32)

    def territory_names(self) -> list[str]:
        return [t.name for t in self.manifest.territories]


def bucket_folder(table: str, bucket: int) -> str:
    return f"{table}/bucket={bucket:05d}"
