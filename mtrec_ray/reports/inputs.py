"""What a report is made from: folders of other commands, recognised by their files."""

# pyright: reportArgumentType=false, reportCallIssue=false
# the stubs of pandas know no columns of rows, and few results of selections

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mtrec_ray.errors import UserError
from mtrec_ray.files import exists, join, parent, read_file, read_json

KINDS = {  # kind -> the file that shows it
    "run": "run.json",
    "audit": "audit.json",
    "evaluation": "metrics.json",
    "search": "summary.json",
    "bundle": "manifest.json",
}
SEARCH_RECORD = "search.yaml"  # of a search that has no result yet
NEEDED_AUDIT = 2  # version of audit.json that this report reads


@dataclass(frozen=True)
class Folder:
    """One folder of results."""

    uri: str
    kind: str
    document: dict[str, Any]  # of the file that shows its kind
    name: str  # the last part of its path, with the one before where two folders have the same

    def table(self, name: str) -> pd.DataFrame | None:
        """A CSV file of the folder, texts as texts; None where there is none.

        Columns that are empty in a whole file are left out by its writer: they come back as NaN.
        """
        if not exists(join(self.uri, f"{name}.csv")):
            return None
        texts = dict.fromkeys(("day", "territory", "title", "combination", "trial", "trial_id"), str)
        content = read_file(join(self.uri, f"{name}.csv"))
        table = pd.read_csv(io.BytesIO(content), dtype=texts, keep_default_na=False, na_values=[""])
        left_out = [column for column in ("over", "low", "high") if "value" in table and column not in table]
        return table.assign(**dict.fromkeys(left_out, np.nan))


@dataclass(frozen=True)
class Inputs:
    """All folders of a report, by kind, in the order given."""

    folders: list[Folder] = field(default_factory=list)
    unread: dict[str, list[str]] = field(default_factory=dict)  # kind -> why folders of it were left out

    def of(self, kind: str) -> list[Folder]:
        return [folder for folder in self.folders if folder.kind == kind]


def read_inputs(uris: list[str]) -> Inputs:
    """Recognise each folder; audits of a former version are left out, with the reason.

    UserError for one that is no result, or where none is left.
    """
    uris = list(dict.fromkeys(uri.rstrip("/") for uri in uris))
    names = [parent(uri)[1] for uri in uris]
    longer = [f"{parent(parent(uri)[0])[1]}-{name}" for uri, name in zip(uris, names, strict=True)]
    chosen = [long if names.count(name) > 1 else name for name, long in zip(names, longer, strict=True)]
    folders = [_read(uri, name) for uri, name in zip(uris, chosen, strict=True)]
    former = [folder for folder in folders if folder.kind == "audit" and _version(folder) != NEEDED_AUDIT]
    reasons = [
        f"audit {folder.uri!r} has version {_version(folder)}, a report reads {NEEDED_AUDIT}: audit the run again"
        for folder in former
    ]
    if reasons and len(former) == len(folders):
        raise UserError("; ".join(reasons))
    return Inputs([folder for folder in folders if folder not in former], {"audit": reasons} if reasons else {})


def _read(uri: str, name: str) -> Folder:
    for kind, file in KINDS.items():
        if exists(join(uri, file)):
            document = read_json(join(uri, file))
            if not isinstance(document, dict):
                raise UserError(f"{join(uri, file)!r} is damaged: make it again")
            return Folder(uri, kind, document, name)
    if exists(join(uri, SEARCH_RECORD)):
        return Folder(uri, "search", {}, name)
    if exists(join(uri, "quickstart.json")):
        raise UserError(
            f"{uri!r} is a quickstart's folder: name what lies in it, {uri}/runs/*, {uri}/evaluation, {uri}/audit"
        )
    known = ", ".join(KINDS)
    raise UserError(f"{uri!r} holds no result: name folders of a {known}")


def _version(folder: Folder) -> object:
    return folder.document.get("version")
