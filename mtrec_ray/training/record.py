"""What every kind of run has: `run.json`, its settings and state, and `plan.json`, what its streams count on."""

from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, exists, join, parent, read_file, read_json, write_file, write_json
from mtrec_ray.lake.manifest import Lake

RUN, PLAN = "run.json", "plan.json"
MAY_DIFFER = {"runner", "jobs_at_once", "retries", "lake", "backbone", "runs"}
"""Settings that a run may be gone on with otherwise: they change nothing but speed, or name places, which may move."""

Plan = TypeVar("Plan", bound=BaseModel)


class Record(BaseModel):
    """The content of `run.json`; a kind of run adds what it is made from, and types of `kind` and `config`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    kind: Any
    status: Literal["training", "done"]
    config: Any
    lake_hash: str
    metrics: dict[str, float] = {}

    @property
    def uri(self) -> str:
        return join(self.config.runs, self.config.name)

    def save(self) -> None:
        write_json(join(self.uri, RUN), self.model_dump(mode="json"))

    @classmethod
    def load(cls, uri: str) -> Self:
        """The run in the folder or URI `uri`, with the place and name that it has now: runs may be moved.

        Raises:
            UserError: there is no run, one of another kind, or one of another version.
        """
        kind = cls.model_fields["kind"].default
        try:
            document = read_json(join(uri, RUN))
        except FileNotFoundError as error:
            raise UserError(f"no run at {uri!r}: {RUN} is missing; `mtrec train {kind}` makes one") from error
        found = document.get("kind") if isinstance(document, dict) else None
        if found != kind:
            raise UserError(f"run {uri!r} is one of {found}, not of {kind}: choose another run, or another name")
        try:
            record = cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise UserError(f"run {uri!r} was written by another version ({where}): train again") from error
        runs, name = parent(absolute(uri))
        return record.model_copy(update={"config": record.config.model_copy(update={"runs": runs, "name": name})})

    @classmethod
    def load_done(cls, uri: str) -> Self:
        """The same; UserError where it is not finished."""
        record = cls.load(uri)
        if record.status != "done":
            raise UserError(f"run {uri!r} is not finished: start `mtrec train {record.kind}` with the same name again")
        return record

    def resume_or_new(self) -> Self:
        """This new record, or what the run of its name has come to; UserError where that is another run."""
        if not exists(join(self.uri, RUN)):
            return self
        old = self.load(self.uri)
        old.check_same(self)
        return old if old.status == "done" else old.model_copy(update={"config": self.config})

    def relocate_inputs(self, **places: str) -> Self:
        """A finished run's record with the place that its `lake` or `backbone` has now, saved where that was moved."""
        moved = self.config.model_copy(update=places)
        if moved == self.config:
            return self
        record = self.model_copy(update={"config": moved})
        record.save()
        return record

    def check_same(self, new: Self) -> None:
        """UserError where the name is taken by a run on another lake or with other settings than `new`."""
        self._check_state(new, "lake", self.lake_hash, new.lake_hash)
        before, now = (_flat(one.config.model_dump(mode="json", exclude=MAY_DIFFER)) for one in (self, new))
        changed = [
            f"{key} = {before.get(key)!r} (now {now.get(key)!r})"
            for key in sorted(before | now)
            if before.get(key) != now.get(key)
        ]
        if changed:
            begun = f"run {new.config.name!r} was begun with other settings"
            raise UserError(f"{begun}: {'; '.join(changed)}: choose another name")

    def _check_state(self, new: Self, what: str, old_hash: str, new_hash: str) -> None:
        if old_hash != new_hash:
            raise UserError(
                f"run {new.config.name!r} was begun on another state of its {what} "
                f"(hash {old_hash[:12]}, now {new_hash[:12]}): choose another name"
            )

    def open_lake(self, uri: str | None = None) -> Lake:
        """The lake that the run stands on, `config.lake` if no other place is named; UserError where it was changed."""
        lake = Lake.open(uri or self.config.lake)
        check_lake(lake, self.lake_hash, self.config.name)
        return lake


def check_lake(lake: Lake, expected_hash: str, run: str) -> None:
    """UserError where the lake is no longer what the run was begun on."""
    if lake.manifest.lake_hash != expected_hash:
        raise UserError(f"lake {lake.uri!r} was changed since run {run!r} was begun on it: train again by another name")


def save_plan(uri: str, plan: BaseModel) -> None:
    write_file(join(uri, PLAN), plan.model_dump_json(indent=1).encode())


def load_plan(uri: str, model: type[Plan]) -> Plan:
    try:
        return model.model_validate_json(read_file(join(uri, PLAN)))
    except (FileNotFoundError, ValidationError) as error:
        raise UserError(f"run {uri!r}: {PLAN} is missing or damaged: remove the run and train it again") from error


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
