"""`lake.json` and the only way to read a lake.

A lake is a folder (any `pyarrow.fs` URI) of Parquet files and one `lake.json` that lists them with their SHA-256.
Only listed files exist for a reader: replacing `lake.json` is what commits a build or a new set of embeddings.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, resolve
from mtrec_ray.sources.calendar import Calendar, Territory

FORMAT_VERSION = 1
MANIFEST_NAME = "lake.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LakeFile(_Frozen):
    """One Parquet file, its path relative to the lake."""

    path: str
    rows: int
    sha256: str


class Embeddings(_Frozen):
    """What the embedding columns hold; width 0 = the lake has none yet."""

    user_width: int = 0
    title_width: int = 0
    interaction_width: int = 0
    """The last columns of a title's vector that live in the space of the user's vector; 0 = none do."""
    num_folds: int = 0
    """K > 0: users also carry K cross-fitted vectors, the k-th computed without the titles of fold k."""
    fold_seed: int = 0
    window_start: datetime | None = None
    """The events that the vectors were computed from; None where the source brought them."""
    window_end: datetime | None = None
    description: str = ""


class Manifest(_Frozen):
    """The content of `lake.json`."""

    format_version: int = FORMAT_VERSION
    source: str
    notes: list[str] = []
    """What a reader of figures from this lake must know."""
    num_buckets: int
    territories: list[Territory]
    attributes: dict[str, list[str]]
    """Sensitive attributes with their declared values, in order."""
    title_categoricals: list[str] = []
    """Further categorical columns of `titles`."""
    calendar: Calendar
    embeddings: Embeddings = Embeddings()
    trained_users_are_tested: bool = False
    """True: figures for users the model was trained on are reported beside those of held-out users."""
    counts: dict[str, int]
    """Rows of each table."""
    quarantined: dict[str, int] = {}
    """Rows put aside by reason, `table/reason`."""
    files: dict[str, list[LakeFile]]
    """Table (`users`, `events`, `titles`, optional `candidates`) -> its files, sorted by path."""

    @property
    def content_hashes(self) -> dict[str, str]:
        """One SHA-256 per table over its files' paths and hashes."""
        return {
            table: hashlib.sha256("\n".join(f"{f.path} {f.sha256}" for f in files).encode()).hexdigest()
            for table, files in self.files.items()
        }

    @property
    def lake_hash(self) -> str:
        """Identity of everything that decides a run's result; checkpoints record it.

        The tables' content, and what readers take from `lake.json` itself: calendar, territories with their regions,
        attributes in their order with their values, what the embeddings are, counts. What only people read is left out.
        """
        left_out = {"source": True, "notes": True, "quarantined": True, "files": True, "embeddings": {"description"}}
        facts = self.model_dump(mode="json", exclude=left_out)
        facts |= {"attributes": list(self.attributes.items()), "content": self.content_hashes}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Lake:
    """An opened lake: its manifest and its tables, bucket by bucket. Picklable: holds plain data only."""

    uri: str
    manifest: Manifest

    @staticmethod
    def open(uri: str) -> "Lake":
        """Read `lake.json`.

        Raises:
            UserError: no lake there, an unreadable manifest, or another format version.
        """
        fs, root = resolve(uri)
        try:
            with fs.open_input_stream(f"{root}/{MANIFEST_NAME}") as stream:
                text = stream.read()
        except FileNotFoundError as error:
            raise UserError(
                f"no lake at {uri!r}: {MANIFEST_NAME} is missing; build one with `mtrec lake build`"
            ) from error
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            version = _format_version(text)
            if version not in (None, FORMAT_VERSION):
                raise UserError(
                    f"lake {uri!r} has format version {version!r}, this program reads {FORMAT_VERSION}: build it again"
                ) from error
            raise UserError(f"lake {uri!r}: {MANIFEST_NAME} is damaged: {error}") from error
        if manifest.format_version != FORMAT_VERSION:
            raise UserError(
                f"lake {uri!r} has format version {manifest.format_version}, this program reads {FORMAT_VERSION}: "
                "build it again"
            )
        return Lake(absolute(str(uri)), manifest)

    def read(self, table: str, bucket: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """One whole table (`titles`, `candidates`) or one bucket of `users` or `events`, rows in stored order."""
        fs, root = resolve(self.uri)
        wanted = None if bucket is None else bucket_folder(table, bucket) + "/"
        paths = [f.path for f in self.manifest.files.get(table, []) if wanted is None or f.path.startswith(wanted)]
        if not paths:
            raise UserError(
                f"lake {self.uri!r} has no table {table!r}" + ("" if bucket is None else f", bucket {bucket}")
            )
        parts = []
        for path in paths:
            with self._damage_named(path), fs.open_input_file(f"{root}/{path}") as file:
                parts.append(pq.ParquetFile(file).read(columns=columns))
        return pa.concat_tables(parts).combine_chunks()

    @cached_property
    def titles(self) -> pa.Table:
        """The titles table without embeddings, sorted by `title_id`: a title's row is its index everywhere."""
        names = [n for n in self._schema_names("titles") if n != "embedding"]
        return self.read("titles", columns=names)

    def title_embeddings(self) -> np.ndarray:
        """(titles, title_width) float16, rows as in `titles`."""
        return fixed_width_matrix(self.read("titles", columns=["embedding"])["embedding"])

    def territory_names(self) -> list[str]:
        return [t.name for t in self.manifest.territories]

    def _schema_names(self, table: str) -> list[str]:
        fs, root = resolve(self.uri)
        path = self.manifest.files[table][0].path
        with self._damage_named(path), fs.open_input_file(f"{root}/{path}") as file:
            return pq.read_schema(file).names

    @contextmanager
    def _damage_named(self, path: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"lake {self.uri!r} is damaged at {path}: {error}; `mtrec lake check` lists it all"
            ) from error


def bucket_folder(table: str, bucket: int) -> str:
    return f"{table}/bucket={bucket:05d}"


def _format_version(text: bytes) -> object:
    """None where it says none, as in a truncated file."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document.get("format_version") if isinstance(document, dict) else None
