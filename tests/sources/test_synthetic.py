"""The planted world: frequencies, tastes and correlations are those of the generated rows."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.errors import UserError
from mtrec_ray.sources.planted import PlantedUsers, make_world
from mtrec_ray.sources.source import make_source
from mtrec_ray.sources.synthetic import SyntheticConfig, SyntheticSource

CONFIG = SyntheticConfig(users=6_000, territories=8, titles=60, user_width=16, title_width=12, seed=3)


def _generate(config: SyntheticConfig) -> tuple[SyntheticSource, pa.Table, pa.Table]:
    source = SyntheticSource(config)
    light = pa.concat_tables(part() for part in source.parts("users"))
    return source, *source.complete_bucket(light, pa.table({}))


@pytest.fixture(scope="module")
def generated() -> tuple[SyntheticSource, pa.Table, pa.Table]:
    return _generate(CONFIG)


def test_user_does_not_depend_on_other_users(generated):
    source, users, events = generated
    some = users.select(["user_id"]).slice(1_234, 17)
    few_users, few_events = source.complete_bucket(some, pa.table({}))
    assert few_users.equals(users.slice(1_234, 17))
    assert few_events.equals(events.filter(pc.is_in(events["user_id"], value_set=some["user_id"].combine_chunks())))


def test_titles_and_users_differ_with_the_seed(generated):
    _, first, _ = generated
    _, second, _ = _generate(CONFIG.model_copy(update={"seed": 4}))
    assert not first["territory"].equals(second["territory"])


def test_territory_sizes_and_active_fractions_are_as_planted(generated):
    source, users, events = generated
    end = source.facts.calendar.window_end
    active = set(events.filter(pc.less(events["timestamp"], end))["user_id"].to_pylist())
    counts = {row["values"]: row["counts"] for row in pc.value_counts(users["territory"]).to_pylist()}
    assert counts["T001"] > 3 * counts["T008"]
    planted = zip(source.territories, source.world.user_fraction, source.world.active_fraction, strict=True)
    for territory, user_fraction, active_fraction in planted:
        members = users.filter(pc.equal(users["territory"], territory))["user_id"].to_pylist()
        assert len(members) / 6_000 == pytest.approx(user_fraction, abs=0.02)
        fraction = np.mean([user_id in active for user_id in members])
        assert fraction == pytest.approx(active_fraction, abs=4 * np.sqrt(0.25 / len(members)))
    assert set(users.filter(pa.array(source.planted(users).active))["user_id"].to_pylist()) == active


def test_only_active_users_have_events_late_in_a_longer_window():
    source, users, events = _generate(CONFIG.model_copy(update={"days": 180}))
    calendar = source.facts.calendar
    late = pc.and_(
        pc.less(events["timestamp"], calendar.window_end),
        pc.greater_equal(events["timestamp"], calendar.day_bounds(-89)[0]),
    )
    late_users = set(events.filter(late)["user_id"].to_pylist())
    assert late_users == set(users.filter(pa.array(source.planted(users).active))["user_id"].to_pylist())
    assert len(set(events["user_id"].to_pylist())) > len(late_users)


def test_events_are_of_offered_titles_and_inside_the_calendar(generated):
    source, users, events = generated
    offered = {row["title_id"]: row["territories"] for row in source.titles().to_pylist()}
    home = dict(zip(users["user_id"].to_pylist(), users["territory"].to_pylist(), strict=True))
    calendar = source.facts.calendar
    for row in events.slice(0, 20_000).to_pylist():
        assert offered[row["title_id"]] in ([], [home[row["user_id"]]])
        assert calendar.window_start <= row["timestamp"] < calendar.day_bounds(3)[1]


def test_group_taste_explains_the_events_better_than_a_common_one(generated):
    source, users, events = generated
    world, planted = source.world, source.planted(users)
    own = planted.title_logits()
    common = np.mean([_logits_as(group, planted) for group in range(4)], axis=0)
    user_row = pc.index_in(events["user_id"], value_set=users["user_id"].combine_chunks()).to_numpy()
    title = pc.index_in(events["title_id"], value_set=pc.unique(source.titles()["title_id"])).to_numpy()
    for group in range(4):
        of_group = world.taste_group[planted.territory][user_row] == group
        gain = _log_likelihood(own, user_row[of_group], title[of_group]) - _log_likelihood(
            common, user_row[of_group], title[of_group]
        )
        assert gain > 0.1


def _logits_as(group: int, users: PlantedUsers) -> np.ndarray:
    """Logits if every territory had the taste of `group`."""
    world = replace(users.world, taste_group=np.full_like(users.world.taste_group, group))
    return replace(users, world=world).title_logits()


def _log_likelihood(logits: np.ndarray, row: np.ndarray, title: np.ndarray) -> float:
    normal = np.log(np.exp(logits).sum(axis=1))
    return float((logits[row, title] - normal[row]).mean())


def test_embeddings_show_the_taste_but_not_the_group(generated):
    source, users, _ = generated
    planted = source.planted(users)
    taste = planted.taste
    matrix = fixed_width_matrix(users["embedding"]).astype(float)
    found, *_ = np.linalg.lstsq(matrix, taste, rcond=None)
    assert np.corrcoef((matrix @ found).ravel(), taste.ravel())[0, 1] > 0.95
    group = source.world.taste_group[planted.territory]
    centres = np.stack([matrix[group == g].mean(axis=0) for g in range(4)])
    assert np.abs(centres - matrix.mean(axis=0)).max() < 0.15


def test_attributes_follow_the_taste_and_some_are_unknown(generated):
    source, users, _ = generated
    world, taste = source.world, source.planted(users).taste
    for i, (name, values) in enumerate(source.facts.attributes.items()):
        codes = pc.index_in(users[name], value_set=pa.array(values)).to_pylist()
        known = np.array([code is not None for code in codes])
        assert known.mean() == pytest.approx(0.9, abs=0.02)
        along = (taste @ world.attribute_direction[i])[known]
        assert np.corrcoef(along, [code for code in codes if code is not None])[0, 1] > 0.4


def test_shuffled_groups_are_balanced_and_not_the_regions():
    world = make_world(SyntheticConfig(territories=24, taste_groups="shuffled"))
    assert np.bincount(world.taste_group).tolist() == [6, 6, 6, 6]
    assert (world.taste_group != world.region).any()
    assert not make_world(SyntheticConfig(territories=24, taste_groups="one")).taste_group.any()


@pytest.mark.parametrize(
    ("source", "config", "raw", "message"),
    [
        ("synthetic", {"colour": 1}, None, "colour"),
        ("synthetic", {}, "/somewhere", "reads no raw files"),
        ("netflix", {}, None, "unknown source 'netflix'"),
    ],
)
def test_unknown_settings_are_errors(source, config, raw, message):
    with pytest.raises(UserError, match=message):
        make_source(source, config, raw)
