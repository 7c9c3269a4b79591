"""Values of every type and writer in one form, or an error that names what is wrong."""

from decimal import Decimal
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.sources.values import embedding_bytes, free_text, id_text, label_text, text_lists

NAN = float("nan")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([7, 12345678901, None]),
        pa.array([7, 12345678901, None], pa.uint64()),
        pa.array([7.0, 12345678901.0, NAN]),
        pa.array([Decimal("7.00"), Decimal("12345678901.00"), None]),
        pa.array(["7", "12345678901", None]),
        pa.array(["7.0", " 12345678901.00", "nan"], pa.large_string()),
        pa.array(["7", "12345678901", " "], pa.string_view()),
        pa.array([b"7", b"12345678901", b""]),
        pa.array(["7", "12345678901", "None"]).dictionary_encode(),
        pa.chunked_array([pa.array([7.0]), pa.array([12345678901.0, None])]),
    ],
    ids=lambda column: str(column.type),
)
def test_one_id_has_one_form(column):
    assert id_text(column).to_pylist() == ["7", "12345678901", None]


def test_small_floats_and_uuids_are_ids():
    assert id_text(pa.array([7, NAN], pa.float32())).to_pylist() == ["7", None]
    uuid = UUID("12345678-1234-5678-1234-567812345678")
    stored = pa.array([uuid.bytes, None], pa.binary(16))
    assert id_text(pa.ExtensionArray.from_storage(pa.uuid(), stored)).to_pylist() == [str(uuid), None]
    assert id_text(pa.chunked_array([], pa.float64())).to_pylist() == []
    assert id_text(pa.array(["007", "1e5", "tt01", "u 1"])).to_pylist() == ["007", "1e5", "tt01", "u 1"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([7.5]), "7.5 is no id"),
        (pa.array([1.5e18]), "1500000000000000000 of type double may have lost digits"),
        (pa.array([2.0**24 + 2], pa.float32()), "16777218 of type float may have lost digits"),
        (pa.array(["1.2345678901e10"]), "'1.2345678901e10' was a number that has lost digits"),
        (pa.array(["b'7'"]), "was Python bytes"),
        (pa.array([True]), "ids of type bool cannot be read"),
        (pa.array([0], pa.timestamp("s")), r"ids of type timestamp\[s\] cannot be read"),
        (pa.array([b"\xff\x00"]), "values of type binary are no UTF-8 text"),
        (pa.array([["a"]]), "cannot be read: write text or whole numbers"),
        (pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"7"'])), "cannot be read: write text or whole numbers"),
        (pa.array([{"a": 1}]), "cannot be read: write text or whole numbers"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_what_is_no_exact_id_is_refused(column, message):
    with pytest.raises(UserError, match=message):
        id_text(column)


def test_labels_of_every_type_and_missing_ones():
    assert label_text(pa.array([1.0, 2.5, NAN, None])).to_pylist() == ["1", "2.5", None, None]
    assert label_text(pa.array([True, None])).to_pylist() == ["true", None]
    assert label_text(pa.array(["True", "FALSE", " f ", "", "  ", "<NA>", "NaN"])).to_pylist() == [
        *("true", "false", "f"),
        *([None] * 4),
    ]
    assert label_text(pa.array(["NA", "None"]), missing=[]).to_pylist() == ["NA", "None"]
    assert label_text(pa.nulls(2)).to_pylist() == [None, None]


def test_free_text_keeps_its_spaces_and_words():
    assert free_text(pa.array([" None ", "", "  ", None])).to_pylist() == [" None ", None, None, None]
    assert free_text(pa.array([["drama", "war"], [], None])).to_pylist() == ["drama|war", None, None]
    assert free_text(pa.array([NAN, NAN])).to_pylist() == [None, None]


def test_lists_of_labels_come_from_lists_and_texts():
    for listed in ([["NO", "SE"], [], None], ["NO| SE", "", None], ['["NO", "SE"]', None, None]):
        lists = text_lists(pa.array(listed), label_text).to_pylist()
        assert [values or None for values in lists] == [["NO", "SE"], None, None]
    assert text_lists(pa.array([[7.0, None]]), id_text).to_pylist() == [["7", None]]
    with pytest.raises(UserError, match="is no list: write words between"):
        text_lists(pa.array(["['NO']"]), label_text)


def test_embeddings_are_numbers_or_bytes():
    expected = np.array([1, 2], np.float16).tobytes()
    for column in (pa.array([[1, 2], None]), pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))):
        assert embedding_bytes(column).to_pylist() == [expected, None]
    assert embedding_bytes(pa.nulls(1)).to_pylist() == [None]
    for column in (pa.array(["[1, 2]"]), pa.array([["1", "2"]]), pa.array([1.0])):
        with pytest.raises(UserError, match="embeddings of type"):
            embedding_bytes(column)
