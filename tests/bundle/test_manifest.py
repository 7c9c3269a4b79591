"""Bundles that cannot be opened or loaded are UserErrors."""

import json

import pytest

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.errors import UserError
from tests.serving.bundles import write_bundle, write_manifest


def test_a_changed_manifest_is_a_user_error(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    document = json.loads((folder / "manifest.json").read_text())
    document["combinations"][:2] = document["combinations"][1::-1]  # gender's eliminator would serve age
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"manifest\.json was changed: make it again"):
        Bundle.open(str(folder))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"backbone": {}}, "backbone"),
        ({"combinations": [["gender"]]}, "eliminators"),
        ({"eliminators": {"prompts": 3}}, "eliminators"),
        ({"propensity": {"model": {"d": 3}, "group_of_territory": [0, 1], "pr_auc": {}}}, "propensity"),
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_a_user_error(tmp_path, changes, name):
    folder = write_bundle(tmp_path / "bundle")
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()) | changes)
    bundle = Bundle.open(str(folder))
    with pytest.raises(UserError, match=rf"bundle '{folder}': {name}\.safetensors does not fit manifest\.json"):
        getattr(bundle, name)()


def test_a_bundle_of_a_removed_block_is_refused_in_one_line(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    document = json.loads((folder / "manifest.json").read_text())
    document["propensity"]["model"]["group_block"] = "film"
    write_manifest(folder, document)
    with pytest.raises(UserError, match=f"^bundle '{folder}' has the group block 'film', which is no more"):
        Bundle.open(str(folder))
