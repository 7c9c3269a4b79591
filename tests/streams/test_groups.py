"""Territory groups: by name, of balanced regions, or from a file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.errors import UserError
from mtrec_ray.hashing import user_keys
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.groups import balanced_regions, make_groups, training_volume
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.sampling import TRAIN, split_of
from tests.streams.lakes import CALENDAR, manifest_of, random_rows, write_lake

NORDIC = manifest_of({"DE": "C", "NO": "N", "SE": "N"})


@pytest.mark.parametrize(
    ("spec", "names", "of_territory"),
    [
        ("one", ["all"], [0, 0, 0]),
        ("each", ["DE", "NO", "SE"], [0, 1, 2]),
        ("regions", ["C", "N"], [0, 1, 1]),
    ],
)
def test_one_each_and_regions_partition_the_territories(spec, names, of_territory):
    groups = make_groups(spec, NORDIC)
    assert (groups.names, groups.of_territory) == (names, of_territory)


def groups_of(regions: str, volume: list[int], num_groups: int) -> list[tuple[str, str]]:
    """(name, its territories) of each group; territories are called a, b, c, ... and regions have one letter."""
    found = balanced_regions(list(regions), np.array(volume), num_groups)
    letters = "abcdefghijklmnop"
    members = [[letters[t] for t, group in enumerate(found.of_territory) if group == g] for g in range(num_groups)]
    return list(zip(found.names, map("".join, members), strict=True))


@pytest.mark.parametrize(
    ("regions", "volume", "num_groups", "expected"),
    [
        # Whole regions where they fit.
        ("AABBCCDDE", [90, 9, 80, 8, 70, 7, 30, 3, 40], 4, [("A", "ab"), ("B", "cd"), ("C", "ef"), ("D+E", "ghi")]),
        # Fewer regions than groups: the largest is halved, each half with a major and minor territories.
        ("AAAABB", [100, 90, 2, 1, 50, 5], 3, [("A 1", "ad"), ("A 2", "bc"), ("B", "ef")]),
        # Half of all viewing and more in one region, in several territories: it is halved.
        ("AAAAAABCDE", [90, 80, 70, 60, 5, 4, 30, 30, 3, 2], 4, None),
        # Half of all viewing and more in one territory: nothing to be balanced by halving.
        ("AABCD", [900, 9, 50, 40, 30], 4, [("A", "ab"), ("B", "c"), ("C", "d"), ("D", "e")]),
        ("ABC", [0, 0, 0], 3, [("A", "a"), ("B", "b"), ("C", "c")]),
        ("ABC", [3, 2, 1], 1, [("A+B+C", "abc")]),
    ],
)
def test_regions_are_packed_whole_and_halved_only_where_they_must_be(regions, volume, num_groups, expected):
    found = groups_of(regions, volume, num_groups)
    if expected is None:
        assert {name.split("+")[0][:3] for name, _ in found} >= {"A 1", "A 2"}
    else:
        assert found == expected


def test_each_group_has_major_and_minor_territories_of_a_heavy_tail():
    """220 territories of 22 regions, as a global service has them: viewing falls as 1 / rank."""
    rng = np.random.default_rng(0)
    volume = rng.permutation(1e6 / np.arange(1, 221)).astype(int)
    regions = [f"region {number:02d}" for number in rng.integers(0, 22, 220)]
    groups = balanced_regions(regions, volume, 4)
    of_territory, minor = np.array(groups.of_territory), volume < volume.mean()
    shares = np.bincount(of_territory, weights=volume) / volume.sum()
    assert 0.15 < shares.min() < shares.max() < 0.35
    assert np.bincount(of_territory[minor]).min() > 35
    assert np.bincount(of_territory[~minor]).min() > 3
    together = {(region, group) for region, group in zip(regions, groups.of_territory, strict=True)}
    assert len(together) == 22  # no region is in two groups


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 12))
def test_every_group_has_a_territory_and_names_are_distinct(data, size):
    regions = data.draw(st.lists(st.sampled_from("ABC"), min_size=size, max_size=size))
    volume = data.draw(st.lists(st.integers(0, 100), min_size=size, max_size=size))
    number = data.draw(st.integers(1, size))
    groups = balanced_regions(regions, np.array(volume), number)
    assert len(set(groups.names)) == len(groups.names) == number
    assert list(dict.fromkeys(groups.of_territory)) == list(range(number))


def test_more_groups_than_territories_are_refused():
    with pytest.raises(
        UserError, match=r"^model.groups = 'regions:4': the lake has 3 territories: take 1 to 3 groups$"
    ):
        make_groups("regions:4", NORDIC, lambda: np.ones(3))


def test_viewing_is_what_training_users_discover_in_the_window(tmp_path):
    lake, sample = write_lake(tmp_path, *random_rows(), num_buckets=3), SampleConfig()
    found = training_volume(lake, sample, CALENDAR, reader=LocalReader())
    users, events = lake.read("users").to_pandas(), lake.read("events").to_pandas()
    training = users[split_of(user_keys(users["user_id"].to_numpy()), sample) == TRAIN]
    events = events[(events["timestamp"] >= CALENDAR.window_start) & (events["timestamp"] < CALENDAR.window_end)]
    events = events.merge(training[["user_id", "territory"]])
    events["month"] = events["timestamp"].dt.strftime("%Y-%m")
    counts = events.drop_duplicates(["user_id", "title_id", "month"])["territory"].value_counts()
    assert found.tolist() == [counts[name] for name in lake.territory_names()]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_file_is_read_from_a_path_or_a_uri(scheme, tmp_path):
    (tmp_path / "groups.yaml").write_text("north: [SE, NO]\nrest: [DE]\n")
    groups = make_groups(f"{scheme}{tmp_path}/groups.yaml", NORDIC)
    assert (groups.names, groups.of_territory) == (["north", "rest"], [1, 0, 0])


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"north: [SE", r"groups\.yaml is not YAML"),
        (b"north: \xff", r"groups\.yaml is not UTF-8 \(line 1, byte 0xff\)"),
        (b"north: [SE]\nnorth: [DE]", "line 2: key 'north' is on line 1 already"),
        (b"[SE, DE]", r"must hold lines `group name: \[territory, \.\.\.\]`"),
        (b"north: SE", "must hold lines"),
        (b"north: [SE, FI]", "unknown territory 'FI'; the lake has DE, NO, SE"),
        (b"north: [SE, 'NO']\nrest: [DE, SE]", "territory 'SE' is in two groups; keep it in one"),
        (b"north: [SE]", "leaves out 2 territories, first 'DE': give each a group"),
    ],
)
def test_file_that_is_no_partition_is_named_with_the_fix(content, message, scheme, tmp_path):
    (tmp_path / "groups.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        make_groups(f"{scheme}{tmp_path}/groups.yaml", NORDIC)
    assert f"{scheme}{tmp_path}/groups.yaml" in str(error.value)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_unreadable_file_is_named_with_the_reason(scheme, tmp_path):
    uri = f"{scheme}{tmp_path}/groups.yaml"
    with pytest.raises(UserError) as missing:
        make_groups(uri, NORDIC)
    neither = "is neither one, each, regions, regions:N nor a readable file"
    assert str(missing.value) == f"model.groups = {uri!r} {neither}: No such file or directory"
    with pytest.raises(UserError, match=r"nor a readable file: .* is a directory"):
        make_groups(f"{scheme}{tmp_path}", NORDIC)
    with pytest.raises(UserError, match=r"cannot open 'ftp://host/groups\.yaml'"):
        make_groups("ftp://host/groups.yaml", NORDIC)
