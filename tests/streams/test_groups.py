"""Territory groups: by name, or from a file."""

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.streams.groups import make_groups
from tests.streams.lakes import manifest_of

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
    assert str(missing.value) == (
        f"model.groups = {uri!r} is neither one, each, regions nor a readable file: No such file or directory"
    )
    with pytest.raises(UserError, match=r"nor a readable file: .* is a directory"):
        make_groups(f"{scheme}{tmp_path}", NORDIC)
    with pytest.raises(UserError, match=r"cannot open 'ftp://host/groups\.yaml'"):
        make_groups("ftp://host/groups.yaml", NORDIC)
