"""Title texts: similar ones are close, padding does not matter, missing models fail."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.lake.config import TextConfig
from mtrec_ray.lake.embed import encode_batches, encode_texts, title_texts

DETECTIVE = "A detective hunts a killer through the streets of London."
INSPECTOR = "Police inspector pursues a murderer in an English city."
BAKING = "Amateur bakers compete with cakes and pastry."


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def test_similar_texts_are_closer_than_others(minilm):
    detective, inspector, baking = encode_batches([DETECTIVE, INSPECTOR, BAKING], TextConfig(model=minilm))
    assert cosine(detective, inspector) > max(cosine(detective, baking), cosine(inspector, baking)) + 0.2


def test_padding_and_text_beyond_the_limit_do_not_matter(minilm):
    texts, config = [BAKING, " ".join([DETECTIVE, INSPECTOR] * 3)], TextConfig(model=minilm)
    alone = encode_batches(texts[:1], config)
    np.testing.assert_allclose(encode_batches(texts, config)[:1], alone, atol=1e-4)
    long, longer = encode_batches([" ".join(["one two"] * count) for count in (70, 90)], config)
    np.testing.assert_allclose(long, longer, atol=1e-5)


def test_text_is_name_genres_and_synopsis():
    titles = pa.table({"name": ["A", None, None], "genres": ["Drama", "Crime", None], "synopsis": ["S", None, None]})
    assert title_texts(titles) == ["A. Drama. S", "Crime", ""]


@pytest.mark.ray
def test_batches_keep_their_order_and_empty_texts_are_zero(ray_cluster, minilm, monkeypatch):
    texts, config = [BAKING, "", DETECTIVE, INSPECTOR, ""], TextConfig(model=minilm)
    vectors = encode_texts(texts, config)
    assert vectors.shape == (5, 384)
    assert not vectors[[1, 4]].any()
    monkeypatch.setattr("mtrec_ray.lake.embed.BATCH_SIZE", 1)
    np.testing.assert_allclose(vectors[[0, 2, 3]], encode_batches([BAKING, DETECTIVE, INSPECTOR], config), atol=1e-4)


@pytest.mark.parametrize("weights", [None, b"half"], ids=["missing", "truncated"])
def test_text_model_without_weights_is_an_error(minilm, tmp_path, weights):
    shutil.copytree(minilm, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    if weights:
        (tmp_path / "model" / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"text model .* cannot be loaded.*--set text\.model=null"):
        encode_texts(["a film"], TextConfig(model=str(tmp_path / "model")))


def test_missing_gpu_is_an_error(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(UserError, match=r"text\.device = cuda needs a GPU"):
        encode_texts(["a film"], TextConfig(model="any", device="cuda"))
