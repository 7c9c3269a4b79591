"""Whether a stored run is the same as a new one of its name."""

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.identity import MAY_CHANGE, Identity, check_same
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning.config import PropensitySearchConfig

CHANGEABLE = {"runner", "tracking", "lake", "backbone", "runs", "searches"}
CHANGEABLE |= {"jobs_at_once", "trials_at_once", "cpus_per_worker"}


def identity(**settings: object) -> Identity:
    return Identity(dict(settings), {"lake": "a" * 64})


@pytest.mark.parametrize("config", [PropensityConfig, EliminatorsConfig, PropensitySearchConfig])
def test_every_other_setting_is_part_of_the_identity(config):
    assert MAY_CHANGE & set(config.model_fields) == CHANGEABLE & set(config.model_fields)
    for name in set(config.model_fields) - CHANGEABLE:
        with pytest.raises(UserError, match=rf"^run 'a' was started with other settings: {name}\.x = 1 \(now 2\)"):
            check_same("run 'a'", identity(**{name: {"x": 1}}), identity(**{name: {"x": 2}}))


@pytest.mark.parametrize("name", sorted(CHANGEABLE))
def test_speed_and_paths_may_change(name):
    check_same("run 'a'", identity(**{name: 1}), identity(**{name: 2}))


def test_another_input_is_refused_with_both_hashes():
    with pytest.raises(UserError, match=r"another state of its lake \(hash aaaaaaaaaaaa, now bbbbbbbbbbbb\)"):
        check_same("run 'a'", identity(), Identity({}, {"lake": "b" * 64}))
