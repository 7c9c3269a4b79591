"""Where titles are offered: in the territories they name, and everywhere where they name none."""

import pyarrow as pa

from mtrec_ray.lake.offers import offered_in


def test_titles_are_offered_where_they_say_and_everywhere_where_they_say_nothing():
    lists = [["NO"], [], ["SE", "NO"], None, ["DK"]]
    titles = pa.table({"territories": pa.chunked_array([lists[:2], lists[2:]], pa.list_(pa.string()))})
    assert offered_in(titles, ["NO", "SE"]).astype(int).tolist() == [[1, 1, 1, 1, 0], [0, 1, 1, 1, 0]]
