"""Partitions by name: every kind, what a wrong name is told, balance, and moves."""

import itertools

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Manifest, Territory
from mtrec_ray.streams.groups import make_groups
from mtrec_ray.tuning.clustering import Evidence
from mtrec_ray.tuning.partitions import Partition, PartitionMaker, PartitionSpec, at_random, by_volume, with_moves
from tests.streams.lakes import CALENDAR

NAMES = [f"T{number}" for number in range(8)]
MANIFEST = Manifest(
    source="by hand",
    num_buckets=1,
    territories=[Territory(name=name, region="NS"[number % 2]) for number, name in enumerate(NAMES)],
    attributes={},
    calendar=CALENDAR,
    counts={},
    files={},
)
VOLUME = np.array([120, 1, 50, 2, 25, 4, 12, 8])


def alike(*groups: int) -> Evidence:
    """Evidence that territories of one group are alike, the same in both halves."""
    vectors = np.eye(max(groups) + 1)[list(groups)] * 100.0
    return Evidence(np.stack([vectors, vectors]), np.full((2, len(groups)), 100.0))


class Counted:
    """Evidence that remembers how often it was gathered."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence, self.calls = evidence, 0

    def __call__(self) -> Evidence:
        self.calls += 1
        return self.evidence


def maker(seed: int = 0) -> PartitionMaker:
    discoveries = np.stack([VOLUME, np.zeros(8, int)], axis=1)
    taste, affinity = alike(0, 0, 1, 1, 0, 0, 1, 1), alike(0, 1, 2, 3, 0, 1, 2, 3)
    return PartitionMaker(MANIFEST, discoveries, Counted(taste), Counted(affinity), seed)


@pytest.mark.parametrize(
    ("name", "group", "names"),
    [
        ("one", [0] * 8, ["all"]),
        ("each", [*range(8)], NAMES),
        ("regions", [0, 1] * 4, ["N", "S"]),
        ("volume:2", [0, 1, 1, 1, 1, 1, 1, 1], ["group1", "group2"]),
        ("taste:2", [0, 0, 1, 1, 0, 0, 1, 1], ["group1", "group2"]),
        ("taste", [0, 0, 1, 1, 0, 0, 1, 1], ["group1", "group2"]),
        ("affinity:4", [0, 1, 2, 3] * 2, ["group1", "group2", "group3", "group4"]),
        ("affinity", [0, 1, 2, 3] * 2, ["group1", "group2", "group3", "group4"]),
    ],
)
def test_a_name_means_a_partition(name, group, names):
    assert maker().make(name) == Partition(name, tuple(names), tuple(group))


def test_evidence_is_gathered_once_and_only_when_it_is_asked_for():
    discoveries = np.stack([VOLUME, VOLUME])
    taste, affinity = (Counted(alike(0, 0, 1, 1, 0, 0, 1, 1)) for _ in range(2))
    partitions = PartitionMaker(MANIFEST, discoveries.T, taste, affinity)
    for name in ("one", "volume:3", "random:2", "taste:2", "taste:4"):
        partitions.make(name)
    assert (taste.calls, affinity.calls) == (1, 0)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("tase:4", "unknown partition 'tase:4': choose one, each, regions, volume"),
        ("", "unknown partition ''"),
        ("volume", "'volume' needs a number of groups: volume:4"),
        ("random", "'random' needs a number of groups: random:4"),
        ("random:1", "'random:1': the lake has 8 territories, take 2"),
        ("random:99", "'random:99': the lake has 8 territories, take 2"),
        ("taste:x", "'taste:x' is not of the form taste:GROUPS"),
        ("taste:4:1", "'taste:4:1' is not of the form taste:GROUPS"),
        ("random:4:x", "'random:4:x' is not of the form random:GROUPS:DRAW"),
        ("affinity:-2", "'affinity:-2' is not of the form affinity:GROUPS"),
        ("volume:", "'volume:' is not of the form volume:GROUPS"),
        ("one:3", "'one:3' is not of the form one"),
    ],
)
def test_a_wrong_name_is_told_with_the_fix(name, fix):
    with pytest.raises(UserError) as caught:
        PartitionSpec.parse(name, 8)
    assert fix in str(caught.value)


def test_a_name_is_parsed_into_its_numbers():
    assert PartitionSpec.parse("random:4:2", 8) == PartitionSpec("random", 4, 2)
    assert PartitionSpec.parse("random:4", 8) == PartitionSpec("random", 4, 0)
    assert PartitionSpec.parse("taste", 8) == PartitionSpec("taste")


@settings(max_examples=60, deadline=None)
@given(volume=st.lists(st.integers(0, 1000), min_size=2, max_size=7), num_groups=st.integers(2, 3))
def test_the_heaviest_group_by_volume_is_within_four_thirds_of_the_best(volume, num_groups):
    sizes = np.maximum(np.array(volume), 1)
    group = by_volume(np.array(volume), num_groups)
    every = np.array(list(itertools.product(range(num_groups), repeat=len(sizes))))  # (G^N, N)
    best = np.stack([(every == g) @ sizes for g in range(num_groups)]).max(axis=0).min()
    assert np.bincount(group, weights=sizes).max() <= 4 / 3 * best
    assert len(np.unique(group)) == min(num_groups, len(sizes))


@settings(max_examples=60, deadline=None)
@given(
    volume=st.lists(st.integers(0, 50), min_size=2, max_size=20),
    num_groups=st.integers(2, 6),
    seed=st.integers(0, 5),
    draw=st.integers(0, 5),
)
def test_random_groups_are_equally_large_and_mix_large_and_small(volume, num_groups, seed, draw):
    sizes = np.array(volume)
    group = at_random(sizes, num_groups, seed, draw)
    counts = np.bincount(group, minlength=num_groups)
    assert counts.max() - counts.min() <= 1
    ranked = group[np.argsort(-sizes, kind="stable")]
    for start in range(0, len(ranked), num_groups):
        run = ranked[start : start + num_groups]
        assert len(set(run.tolist())) == len(run)
    np.testing.assert_array_equal(group, at_random(sizes, num_groups, seed, draw))


def test_draws_and_seeds_give_other_partitions_and_the_same_ones_again():
    draws = [maker().make(f"random:3:{draw}").group for draw in range(5)]
    assert len(set(draws)) == 5
    assert draws == [maker().make(f"random:3:{draw}").group for draw in range(5)]
    assert maker(seed=1).make("random:3:0").group != draws[0]
    assert maker().make("random:3").group == draws[0]


def test_a_territory_moves_into_the_group_of_another():
    moved = with_moves(maker().make("taste:2"), [(0, 2)])
    assert moved == Partition("taste:2 moved", ("group1", "group2"), (0, 1, 0, 0, 1, 1, 0, 0))


def test_moves_are_made_in_turn():
    moved = with_moves(maker().make("affinity:4"), [(0, 1), (2, 0)])
    assert moved.group == (0, 0, 0, 1, 2, 0, 3, 1)


@pytest.mark.parametrize("moves", [[], [(0, 0)], [(0, 4)], [(0, 1), (0, 4)]])
def test_moves_that_change_nothing_leave_the_partition_as_it_is(moves):
    partition = maker().make("affinity:4")
    assert with_moves(partition, moves) is partition


def test_moving_the_only_member_of_a_group_drops_the_group():
    moved = with_moves(maker().make("volume:2"), [(0, 1)])
    assert moved == Partition("volume:2 moved", ("group1",), (0,) * 8)


@pytest.mark.parametrize("name", ["one", "each", "regions", "volume:3", "taste:2", "affinity:4", "random:3:1"])
def test_a_partitions_document_is_read_back_as_groups(name, tmp_path):
    partition = maker().make(name)
    (tmp_path / "groups.yaml").write_text(yaml.safe_dump(partition.document(NAMES), sort_keys=False))
    groups = make_groups(str(tmp_path / "groups.yaml"), MANIFEST)
    assert (tuple(groups.names), tuple(groups.of_territory)) == (partition.group_names, partition.group)
