"""Lakes written by hand: small ones that can be counted, and a random one for invariants."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.columns import fixed_width_column
from mtrec_ray.files import write_file
from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake.manifest import Calendar, Lake, Manifest, bucket_folder
from mtrec_ray.lake.write import write_parquet
from mtrec_ray.sources.calendar import Territory
from mtrec_ray.sources.source import Embeddings

Event = tuple[str, str, datetime]
"""User, title, time."""
CALENDAR = Calendar(
    window_start=datetime(2022, 1, 1, tzinfo=UTC), window_end=datetime(2022, 4, 1, tzinfo=UTC), num_evaluation_days=2
)


def write_lake(
    folder: Path, users: pa.Table, events: pa.Table, titles: pa.Table, num_buckets: int, embedded: bool = True
) -> Lake:
    """A lake of the given rows, without the build's validation; users carry a random embedding of width 4, or none."""
    files = {"users": [], "events": [], "titles": []}
    keys = user_keys(users["user_id"].to_numpy(zero_copy_only=False))
    if embedded:
        noise = np.random.default_rng(0).standard_normal((len(keys), 4))
        users = users.append_column("embedding", fixed_width_column(noise[np.argsort(np.argsort(keys))]))
        titles = titles.append_column("embedding", fixed_width_column(np.eye(titles.num_rows, 4)))
    for table, rows in (("users", users), ("events", events)):
        buckets = bucket_of(user_keys(rows["user_id"].to_numpy(zero_copy_only=False)), num_buckets)
        for bucket in range(num_buckets):
            (folder / bucket_folder(table, bucket)).mkdir(parents=True)
            part = rows.filter(buckets == bucket).sort_by("user_id")
            files[table].append(write_parquet(str(folder), bucket_folder(table, bucket), part))
    (folder / "titles").mkdir()
    files["titles"].append(write_parquet(str(folder), "titles", titles))
    manifest = manifest_of(
        {"north": "N", "south": "S"},
        num_buckets=num_buckets,
        embeddings=Embeddings(user_width=4, title_width=4) if embedded else Embeddings(),
        counts={"users": users.num_rows, "events": events.num_rows, "titles": titles.num_rows},
        files=files,
    )
    write_file(f"{folder}/lake.json", manifest.model_dump_json().encode())
    return Lake.open(str(folder))


def manifest_of(regions: dict[str, str], **fields: Any) -> Manifest:
    """Of a lake with these territories, which holds nothing else."""
    empty = {"source": "by hand", "num_buckets": 1, "calendar": CALENDAR, "attributes": {}, "counts": {}, "files": {}}
    territories = [Territory(name=name, region=region) for name, region in regions.items()]
    return Manifest(territories=territories, **empty | fields)


def lake_of(
    folder: Path, homes: dict[str, str], events: list[Event], titles: pa.Table, num_buckets: int = 1, **settings
) -> Lake:
    """`write_lake` of users with their territories and of events."""
    users = pa.table({"user_id": list(homes), "territory": list(homes.values())})
    return write_lake(folder, users, event_table(events), titles, num_buckets, **settings)


def title_table(offers: dict[str, list[str]], **columns: list) -> pa.Table:
    """Titles with the territories they are offered in (empty = everywhere)."""
    names = list(offers)
    table = {
        "title_id": names,
        "name": names,
        "genres": pa.nulls(len(names), pa.string()),
        "synopsis": pa.nulls(len(names), pa.string()),
        "territories": pa.array(list(offers.values()), pa.list_(pa.string())),
    }
    return pa.table(table | {name: pa.array(values, pa.timestamp("us", tz="UTC")) for name, values in columns.items()})


def event_table(rows: list[Event]) -> pa.Table:
    users, titles, times = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "user_id": pa.array(users, pa.string()),
            "title_id": pa.array(titles, pa.string()),
            "timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
        }
    )


def day(month: int, number: int, hour: int = 12) -> datetime:
    return datetime(2022, month, number, hour, tzinfo=UTC)


def random_rows(num_users: int = 400, num_titles: int = 30, seed: int = 0) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Users, events and titles of two territories; the north is four times as large, a third of all titles is local."""
    random = np.random.default_rng(seed)
    ids = [f"u{i}" for i in range(num_users)]
    territory = np.where(random.random(num_users) < 0.8, "north", "south")
    offers = {f"t{i:02d}": [["north"], ["south"], []][min(i % 6, 2)] for i in range(num_titles)}
    rows = []
    for user, home in zip(ids, territory, strict=True):
        offered = [t for t, where in offers.items() if not where or home in where]
        for _ in range(random.poisson(6) if random.random() < 0.7 else 0):
            rows.append(
                (user, str(random.choice(offered)), day(int(random.integers(1, 4)), int(random.integers(1, 28))))
            )
        for number in (1, 2):
            if random.random() < 0.2:
                rows.append((user, str(random.choice(offered)), day(4, number)))
    return pa.table({"user_id": ids, "territory": territory.tolist()}), event_table(rows), title_table(offers)


NUM_TITLES = 40
LENGTHS = {f"user{number}": number for number in range(2, 31)}
"""User n of `history_lake` watches the titles n, n + 1, ... (modulo 40), n of them, one a day."""
NUMBER_OF = {int(user_keys([user])[0]): number for user, number in LENGTHS.items()}


def titles_of(number: int) -> list[int]:
    return [(number + place) % NUM_TITLES for place in range(number)]


def history_lake(folder: Path) -> Lake:
    """Users of 2 to 30 events in four buckets, stored newest first, with a gender that every third lacks."""
    numbers = LENGTHS.values()
    users = pa.table(
        {
            "user_id": list(LENGTHS),
            "territory": ["north" if number % 2 else "south" for number in numbers],
            "gender": [["F", "M", None][number % 3] for number in numbers],
        }
    )
    events = [
        (user, f"t{title:02d}", day(1 + place // 25, 1 + place % 25))
        for user, number in LENGTHS.items()
        for place, title in reversed(list(enumerate(titles_of(number))))
    ]
    titles = title_table({f"t{title:02d}": [] for title in range(NUM_TITLES)})
    return with_gender(write_lake(folder, users, event_table(events), titles, num_buckets=4))


def with_gender(lake: Lake) -> Lake:
    return Lake(lake.uri, lake.manifest.model_copy(update={"attributes": {"gender": ["F", "M"]}}))
