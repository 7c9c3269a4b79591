"""From the parameters that a trial draws to the settings that it trains with."""

import hashlib
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import yaml

from mtrec_ray.config import Config, validate_config
from mtrec_ray.files import exists, join, write_file
from mtrec_ray.streams.groups import Groups
from mtrec_ray.trainers.workers import Workers
from mtrec_ray.tuning.data import TrialCache
from mtrec_ray.tuning.partitions import groups_document, with_moves
from mtrec_ray.tuning.space import GROUPS, Space, lay_over, moves_of

Figures = dict[str, dict[str, float]]  # metric -> its `value`, and where it has bounds `low` and `high`


@dataclass(frozen=True)
class GroupsFiles:
    """Groups files of the partitions that trials use, named by the hash of their content."""

    folder: str
    territories: list[str]
    partitions: dict[str, Groups]  # by the name that a trial draws

    def write(self, params: dict[str, Any]) -> str:
        """URI of the file with the drawn partition after the drawn moves."""
        index = self.territories.index
        moves = [(index(territory), index(host)) for territory, host in moves_of(params)]
        groups = with_moves(self.partitions[params[GROUPS]], moves)
        text = yaml.safe_dump(groups_document(groups, self.territories), sort_keys=False).encode()
        uri = join(self.folder, f"{hashlib.sha256(text).hexdigest()[:12]}.yaml")
        if not exists(uri):
            write_file(uri, text)
        return uri


@dataclass(frozen=True)
class TrialSpecs:
    """Makes the trial of drawn parameters. Plain data: it travels to every trial."""

    trial: str  # the trial's class, as `module:Class` below mtrec_ray.tuning
    model: type[Config]
    space: Space
    base: dict[str, Any]  # settings that all trials and the final training share
    trial_overrides: dict[str, Any]  # dotted settings of trials alone: the final training must not have them
    data: dict[str, Any]  # further arguments of the trial's class
    groups_files: GroupsFiles | None = None

    def settings(self, params: dict[str, Any]) -> dict[str, Any]:
        """The document that `mtrec train ... --config` reads."""
        settings = {key: value for key, value in params.items() if key in self.space.distributions}
        if self.groups_files:
            settings[GROUPS] = self.groups_files.write(params)
        return lay_over(self.base, settings)

    def config(self, params: dict[str, Any]) -> Config:
        """Settings of a trial."""
        return validate_config(self.model, lay_over(self.settings(params), self.trial_overrides))

    def make(self, config: Config, cache: TrialCache, workers: Workers) -> Any:
        """The trial of some settings; `cache` keeps what it reads for the next one of its process."""
        return resolve_name(f"mtrec_ray.tuning.{self.trial}")(config, cache, workers, **self.data)
