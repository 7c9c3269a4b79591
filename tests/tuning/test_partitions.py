"""Partitions by name: every kind, errors in names, balance, and moves."""

import itertools

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.errors import UserError
from mtrec_ray.streams.groups import Groups, make_groups, packed
from mtrec_ray.tuning.clustering import Evidence
from mtrec_ray.tuning.partitions import PartitionMaker, PartitionSpec, at_random, groups_document, with_moves
from tests.streams.lakes import manifest_of

NAMES = [f"T{number}" for number in range(8)]
MANIFEST = manifest_of({name: "NS"[number % 2] for number, name in enumerate(NAMES)})
VOLUME = np.array([120, 1, 50, 2, 25, 4, 12, 8])


def equal_within(*groups: int) -> Evidence:
    """Evidence that is equal within a group, the same in both halves."""
    vectors = np.eye(max(groups) + 1)[list(groups)] * 100.0
    return Evidence(np.stack([vectors, vectors]), np.full((2, len(groups)), 100.0))


def maker(seed: int = 0) -> PartitionMaker:
    discoveries = np.stack([VOLUME, np.zeros(8, int)], axis=1)
    taste, affinity = equal_within(0, 0, 1, 1, 0, 0, 1, 1), equal_within(0, 1, 2, 3, 0, 1, 2, 3)
    return PartitionMaker(MANIFEST, discoveries, {"taste": lambda: taste, "affinity": lambda: affinity}, seed)


def groups_of(*group: int) -> Groups:
    return Groups(names=[f"group{number + 1}" for number in range(max(group) + 1)], of_territory=list(group))


@pytest.mark.parametrize(
    ("name", "group", "names"),
    [
        ("one", [0] * 8, ["all"]),
        ("each", [*range(8)], NAMES),
        ("regions", [0, 1] * 4, ["N", "S"]),
        ("regions:4", [0, 1, 2, 3, 2, 3, 0, 1], ["N 1", "S 1", "N 2", "S 2"]),
        ("volume:2", [0, 1, 1, 1, 1, 1, 1, 1], ["group1", "group2"]),
        ("taste:2", [0, 0, 1, 1, 0, 0, 1, 1], ["group1", "group2"]),
        ("taste", [0, 0, 1, 1, 0, 0, 1, 1], ["group1", "group2"]),
        ("affinity:4", [0, 1, 2, 3] * 2, ["group1", "group2", "group3", "group4"]),
        ("affinity", [0, 1, 2, 3] * 2, ["group1", "group2", "group3", "group4"]),
    ],
)
def test_every_kind_of_name_gives_its_groups(name, group, names):
    assert maker().make(name) == Groups(names=names, of_territory=group)


def test_evidence_is_gathered_only_for_its_kind():
    calls = []
    evidence = {
        kind: lambda kind=kind: calls.append(kind) or equal_within(*[0, 1] * 4) for kind in ("taste", "affinity")
    }
    partitions = PartitionMaker(MANIFEST, np.stack([VOLUME, VOLUME]).T, evidence)
    for name in ("one", "volume:3", "random:2", "taste:2"):
        partitions.make(name)
    assert calls == ["taste"]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("random:1", "'random:1': the lake has 8 territories, take 2"),
        ("regions:9", "'regions:9': the lake has 8 territories, take 2"),
        ("random:99", "'random:99': the lake has 8 territories, take 2"),
        ("taste", "need two buckets: give the number, as in taste:4"),
        ("affinity", "need two buckets: give the number, as in affinity:4"),
        *(
            (name, f"unknown partition {name!r}: choose one, each, regions[:G], volume:G")
            for name in ("tase:4", "", "volume", "random", "taste:x", "taste:4:1", "random:4:x", "affinity:-2", "one:3")
        ),
        ("volume:", "unknown partition 'volume:'"),
    ],
)
def test_an_error_in_a_name_has_the_fix(name, fix):
    with pytest.raises(UserError) as caught:
        PartitionSpec.parse(name, 8, num_buckets=1)
    assert fix in str(caught.value)


def test_a_name_is_parsed_into_its_numbers():
    assert PartitionSpec.parse("random:4:2", 8) == PartitionSpec("random", 4, 2)
    assert PartitionSpec.parse("random:4", 8) == PartitionSpec("random", 4, 0)
    assert PartitionSpec.parse("taste", 8) == PartitionSpec("taste")


@settings(max_examples=60, deadline=None)
@given(volume=st.lists(st.integers(0, 1000), min_size=2, max_size=7), num_groups=st.integers(2, 3))
def test_the_heaviest_group_by_volume_is_within_four_thirds_of_the_best(volume, num_groups):
    sizes = np.maximum(np.array(volume), 1)
    group = packed(sizes[:, None], num_groups)
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
def test_random_groups_are_equally_large_with_large_and_small_territories(volume, num_groups, seed, draw):
    sizes = np.array(volume)
    group = at_random(sizes, num_groups, seed, draw)
    counts = np.bincount(group, minlength=num_groups)
    assert counts.max() - counts.min() <= 1
    ranked = group[np.argsort(-sizes, kind="stable")]
    for start in range(0, len(ranked), num_groups):
        run = ranked[start : start + num_groups]
        assert len(set(run.tolist())) == len(run)
    np.testing.assert_array_equal(group, at_random(sizes, num_groups, seed, draw))


def test_random_partitions_depend_on_draw_and_seed_only():
    draws = [tuple(maker().make(f"random:3:{draw}").of_territory) for draw in range(5)]
    assert len(set(draws)) == 5
    assert draws == [tuple(maker().make(f"random:3:{draw}").of_territory) for draw in range(5)]
    assert maker(seed=1).make("random:3:0").of_territory != list(draws[0])
    assert maker().make("random:3").of_territory == list(draws[0])


@pytest.mark.parametrize(
    ("name", "moves", "group"),
    [
        ("taste:2", [(0, 2)], (0, 1, 0, 0, 1, 1, 0, 0)),
        ("affinity:4", [(0, 1), (2, 0)], (0, 0, 0, 1, 2, 0, 3, 1)),  # in turn
        ("volume:2", [(0, 1)], (0,) * 8),  # the only member of its group
    ],
)
def test_a_territory_moves_into_the_group_of_another(name, moves, group):
    assert with_moves(maker().make(name), moves) == groups_of(*group)


@pytest.mark.parametrize("moves", [[], [(0, 0)], [(0, 4)], [(0, 1), (0, 4)]])
def test_moves_without_effect_return_the_same_groups(moves):
    partition = maker().make("affinity:4")
    assert with_moves(partition, moves) is partition


@pytest.mark.parametrize("name", ["one", "each", "regions:3", "volume:3", "taste:2", "affinity:4", "random:3:1"])
def test_a_groups_document_is_read_back_equal(name, tmp_path):
    groups = maker().make(name)
    (tmp_path / "groups.yaml").write_text(yaml.safe_dump(groups_document(groups, NAMES), sort_keys=False))
    assert make_groups(str(tmp_path / "groups.yaml"), MANIFEST) == groups
