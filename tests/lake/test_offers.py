"""Titles are offered in the territories they list, or everywhere."""

import pyarrow as pa

from mtrec_ray.lake.offers import offered_in


def test_titles_without_territories_are_offered_everywhere():
    lists = [["NO"], [], ["SE", "NO"], None, ["DK"]]
    titles = pa.table({"territories": pa.chunked_array([lists[:2], lists[2:]], pa.list_(pa.string()))})
    assert offered_in(titles, ["NO", "SE"]).astype(int).tolist() == [[1, 1, 1, 1, 0], [0, 1, 1, 1, 0]]
