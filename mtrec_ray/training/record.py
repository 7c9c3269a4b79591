"""What every run has: `run.json`, `plan.json`, and how a worker trains it."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, Self, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import RenderableType

from mtrec_ray.config import first_problem
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError, check_version
from mtrec_ray.files import absolute, check_writable, exists, join, parent, read_file, read_json, write_file, write_json
from mtrec_ray.identity import Identity, check_same
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.ordered import CLUSTER, LocalReader, Reader
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.tracking.config import check_tracking
from mtrec_ray.trainers.runner_config import RunnerConfig
from mtrec_ray.trainers.trainer import Trainer
from mtrec_ray.training.weights import load_figures, read_weights
from mtrec_ray.workers import Workers

RUN, PLAN = "run.json", "plan.json"
VERSION = 2
Plan = TypeVar("Plan", bound=BaseModel)
Training = tuple[Trainer[Any], Callable[[int], Iterator[Any]]]
"""One worker's trainer, and its batches from a global step on."""


class Record(BaseModel, ABC):
    """The content of `run.json`; each kind of run adds its inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = VERSION
    kind: Any
    status: Literal["training", "done"]
    config: Any
    lake_hash: str
    num_steps: int = 0  # steps of one training, unless early stopping ends it before; 0 before they are planned
    figures: dict[str, dict[str, Any]] = {}  # figures of the finished run: snapshot or combination -> name -> value

    figures_of: ClassVar[str] = "of"  # what the keys of `figures` are: a column of `metrics`

    @property
    def uri(self) -> str:
        """Folder of the run."""
        return join(self.config.runs, self.config.name)

    @property
    def metrics(self) -> pd.DataFrame:
        """Tidy figures of the finished run: one row a value."""
        found = [(key, name, value) for key, values in self.figures.items() for name, value in values.items()]
        rows = [(self.config.name, *row) for row in found]
        return pd.DataFrame(rows, columns=["run", self.figures_of, "metric", "value"])

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"version": 1, "run": self.uri, "kind": self.kind, "status": self.status, "figures": self.figures}

    @abstractmethod
    def tables(self) -> list[RenderableType]:
        """What a person reads when the run has finished."""

    def folder(self, pack: str = "") -> str:
        """Folder of weights, metrics and checkpoints; eliminators have one for each `pack`."""
        return self.uri

    @property
    def reader(self) -> Reader:
        """How its lake is read."""
        return lake_reader(self.config.runner)

    @abstractmethod
    def make_plan(self, progress: ProgressCallback | None) -> BaseModel:
        """Count what is trained on; UserError where too little is left."""

    @abstractmethod
    def schedule(self, plan: Any) -> Schedule:
        """Every step of a training, unless early stopping ends it before."""

    @abstractmethod
    def training(self, workers: Workers, pack: str = "") -> Training:
        """One worker's trainer and batches."""

    @abstractmethod
    def weights_uris(self) -> dict[str, str]:
        """Files of the finished weights, by what they are of: a day, a pack, or `validation`."""

    def weights_hash(self) -> str:
        """SHA-256 over the weights as they are now, and those they were trained on."""
        digest = hashlib.sha256(self.identity().inputs.get("backbone", "").encode())
        for uri in self.weights_uris().values():
            digest.update(read_weights(uri))
        return digest.hexdigest()

    def trained_figures(self) -> dict[str, dict[str, Any]]:
        """The figures that finished weights hold."""
        return {name: load_figures(uri) for name, uri in self.weights_uris().items()}

    def save(self) -> None:
        """Write `run.json`."""
        write_json(join(self.uri, RUN), self.model_dump(mode="json"))

    @classmethod
    def load(cls, uri: str) -> Self:
        """The run in a folder or URI, with its present folder and name, since runs may be moved.

        Raises:
            UserError: there is no run, one of another kind, or one of another format version.
        """
        kind, reads = cls.model_fields["kind"].default, cls.model_fields["format_version"].default
        try:
            document = read_json(join(uri, RUN))
        except FileNotFoundError as error:
            raise UserError(f"no run at {uri!r}: {RUN} is missing; `mtrec train {kind}` makes one") from error
        document = document if isinstance(document, dict) else {}
        found, version = document.get("kind"), document.get("format_version")
        if found != kind:
            raise UserError(f"run {uri!r} is of kind {found}, not {kind}: choose another run, or another name")
        check_version(f"run {uri!r}", version, reads, "train it again under another name")
        cls.check_document(uri, document)
        try:
            record = cls.model_validate(document)
        except ValidationError as error:
            raise UserError(f"run {uri!r}: {RUN} is damaged ({first_problem(error)}): train it again") from error
        runs, name = parent(absolute(uri))
        return record.with_settings(runs=runs, name=name)

    @classmethod
    def check_document(cls, uri: str, document: dict[str, Any]) -> None:
        """UserError for a stored run that this version cannot read, though its format is known."""

    @classmethod
    def load_done(cls, uri: str) -> Self:
        """`load` of a finished run; UserError if it is unfinished."""
        record = cls.load(uri)
        if record.status != "done":
            raise UserError(f"run {uri!r} is not finished: start `mtrec train {record.kind}` with the same name again")
        return record

    def with_settings(self, **settings: Any) -> Self:
        """A copy with some settings changed."""
        return self.model_copy(update={"config": self.config.model_copy(update=settings)})

    def resume_or_new(self) -> Self:
        """The stored run of this name, or this new record; UserError if that is another run."""
        if not exists(join(self.uri, RUN)):
            return self
        old = self.load(self.uri)
        check_same(f"run {self.config.name!r}", old.identity(), self.identity())
        return old if old.status == "done" else old.model_copy(update={"config": self.config})

    def start(self, check_cluster: Callable[[], None], progress: ProgressCallback | None) -> Self:
        """The run to train, checked and planned; a finished one with its inputs' present paths.

        Raises:
            UserError: settings that do not fit the lake, the cluster, or the stored run of this name; or a folder that
                cannot be written to.
        """
        record = self.resume_or_new()
        if record.status == "done":
            inputs = {"lake", "backbone"} & set(type(self.config).model_fields)
            moved = record.with_settings(**{name: getattr(self.config, name) for name in inputs})
            if moved != record:
                moved.save()
            return moved
        check_tracking(record.config.tracking)
        check_writable(record.config.runs)
        check_cluster()
        if not record.num_steps:  # planned before it is recorded: what fails here leaves no run behind
            plan = record.make_plan(progress)
            write_file(join(record.uri, PLAN), plan.model_dump_json(indent=1).encode())
            record = record.model_copy(update={"num_steps": record.schedule(plan).num_steps})
            record.save()
        return record

    def finish(self) -> Self:
        """Save and return the record of the finished run."""
        done = self.model_copy(update={"status": "done", "figures": self.trained_figures()})
        done.save()
        return done

    def identity(self) -> Identity:
        """What decides this run's figures."""
        return Identity(self.config.model_dump(mode="json"), {"lake": self.lake_hash})

    def open_lake(self, uri: str | None = None) -> Lake:
        """The lake that the run was trained on; UserError where its content has changed since."""
        lake = Lake.open(uri or self.config.lake)
        require_lake(lake, self.lake_hash, self.config.name)
        return lake


RecordT = TypeVar("RecordT", bound=Record)


def lake_reader(runner: RunnerConfig) -> Reader:
    """The cluster's reader, or without workers that of this process."""
    return CLUSTER if runner.workers else LocalReader()


def require_lake(lake: Lake, expected_hash: str, run: str) -> None:
    """UserError where a lake has changed since a run was started on it."""
    if lake.manifest.lake_hash != expected_hash:
        raise UserError(f"lake {lake.uri!r} has changed since run {run!r} was started: train under another name")


def load_plan(uri: str, model: type[Plan]) -> Plan:
    """Read `plan.json` of a run's folder."""
    try:
        return model.model_validate_json(read_file(join(uri, PLAN)))
    except (FileNotFoundError, ValidationError) as error:
        raise UserError(f"run {uri!r}: {PLAN} is missing or damaged: remove the run and train it again") from error
