"""Title texts: similar ones are close, padding does not matter, missing models fail."""

import shutil
import sys

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.lake.config import TextConfig
from mtrec_ray.lake.text_encoder import TextEncoder
from mtrec_ray.lake.title_text import check_text, encode_texts, title_texts, tune_and_encode

DETECTIVE = "A detective hunts a killer through the streets of London."
INSPECTOR = "Police inspector pursues a murderer in an English city."
BAKING = "Amateur bakers compete with cakes and pastry."


def encode(texts: list[str], model: str) -> np.ndarray:
    return TextEncoder.load(TextConfig(model=model)).encode(texts)


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def test_similar_texts_are_closer_than_others(minilm):
    detective, inspector, baking = encode([DETECTIVE, INSPECTOR, BAKING], minilm)
    assert cosine(detective, inspector) > max(cosine(detective, baking), cosine(inspector, baking)) + 0.2


def test_padding_and_text_beyond_the_limit_do_not_matter(minilm):
    texts = [BAKING, " ".join([DETECTIVE, INSPECTOR] * 3)]
    alone = encode(texts[:1], minilm)
    np.testing.assert_allclose(encode(texts, minilm)[:1], alone, atol=1e-4)
    long, longer = encode([" ".join(["one two"] * count) for count in (70, 90)], minilm)
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
    monkeypatch.setattr("mtrec_ray.lake.text_encoder.BATCH_SIZE", 1)
    np.testing.assert_allclose(vectors[[0, 2, 3]], encode([BAKING, DETECTIVE, INSPECTOR], minilm), atol=1e-4)


@pytest.mark.parametrize("weights", [None, b"half"], ids=["missing", "truncated"])
def test_text_model_without_weights_is_an_error(minilm, tmp_path, weights):
    shutil.copytree(minilm, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    if weights:
        (tmp_path / "model" / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"text model .* cannot be loaded.*--set text\.model=null"):
        check_text(["a film"], TextConfig(model=str(tmp_path / "model")))


def test_missing_gpu_is_an_error(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(UserError, match=r"text\.device = cuda needs a GPU"):
        check_text(["a film"], TextConfig(model="any", device="cuda"))


WATCHED_TOGETHER = ["apple river", "cloud hammer", "violin sand"], ["tiger lamp", "copper snow", "bread wheel"]
"""Texts whose words have nothing in common; users watch those of one list."""


class TestFineTuning:
    """Six short texts, so that a step takes a tenth of a second."""

    @staticmethod
    def tuned(model: str, steps: int, seed: int = 0) -> np.ndarray:
        """(2, 3, d) vectors."""
        pairs = [(one, other) for group in WATCHED_TOGETHER for one in group for other in group if one != other]
        config = TextConfig(model=model, fine_tune_steps=steps)
        *numbers, vectors = tune_and_encode([text for group in WATCHED_TOGETHER for text in group], config, pairs, seed)
        assert numbers == list(range(1, steps + 1))
        return np.asarray(vectors).reshape(2, 3, -1)

    def test_titles_watched_together_become_close(self, minilm):
        before, after = self.tuned(minilm, 0), self.tuned(minilm, 12)
        margins = []
        for vectors in (before, after):
            same = np.mean([cosine(group[i], group[i - 1]) for group in vectors for i in range(3)])
            other = np.mean([cosine(one, two) for one in vectors[0] for two in vectors[1]])
            margins.append(same - other)
        assert margins[0] < 0.1
        assert margins[1] > 0.2

    def test_same_seed_gives_the_same_vectors(self, minilm):
        once, again, other = (self.tuned(minilm, 2, seed) for seed in (3, 3, 4))
        assert np.array_equal(once, again)
        assert not np.array_equal(once, other)

    def test_missing_library_is_an_error(self, minilm, monkeypatch):
        monkeypatch.setitem(sys.modules, "sentence_transformers.sentence_transformer.losses", None)
        with pytest.raises(
            UserError, match=r"text\.fine_tune_steps = 5 needs sentence-transf.*'mtrec_ray\[text\]', or"
        ):
            check_text(["a film"], TextConfig(model=minilm, fine_tune_steps=5))

    def test_titles_without_text_are_an_error(self, minilm):
        with pytest.raises(UserError, match=r"text\.fine_tune_steps = 5, but no title .*: set text\.fine_tune_steps=0"):
            check_text(["", ""], TextConfig(model=minilm, fine_tune_steps=5))

    def test_no_text_model_is_a_contradiction(self):
        with pytest.raises(ValueError, match=r"text\.fine_tune_steps = 5 has no effect without text\.model"):
            TextConfig(model=None, fine_tune_steps=5)
