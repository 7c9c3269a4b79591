"""Title texts and their vectors; the encoder, with torch, is loaded where it runs."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.lake.cluster import cluster_resources, joins_cluster, need_ray
from mtrec_ray.lake.config import TextConfig
from mtrec_ray.lake.title_pairs import TextPair

logger = logging.getLogger(__name__)


def title_texts(titles: pa.Table) -> list[str]:
    """Name, genres and synopsis of each title in one text; empty where there is none."""
    columns = [titles[name].to_pylist() for name in ("name", "genres", "synopsis")]
    return [". ".join(part for part in parts if part) for parts in zip(*columns, strict=True)]


def check_text(texts: list[str], config: TextConfig) -> None:
    """UserError where the text model, or what its settings need, is missing."""
    steps = config.fine_tune_steps
    if not any(texts):
        if steps:
            found = f"text.fine_tune_steps = {steps}, but no title of the lake has a name, genres or a synopsis"
            raise UserError(f"{found}: set text.fine_tune_steps=0")
        return
    if config.model is None:
        return
    if config.device == "cuda" and not cluster_resources().get("GPU"):
        message = "text.device = cuda needs a GPU and the cluster has none, so Ray would wait for one: use cpu"
        if not joins_cluster():
            raise UserError(message)
        logger.warning("%s, unless the cluster can add one", message)
    from mtrec_ray.lake.text_encoder import TextEncoder, ranking_loss

    if steps:
        ranking_loss(steps)
    TextEncoder.load(config)


def encode_texts(
    texts: list[str],
    config: TextConfig,
    pairs: Sequence[TextPair] = (),
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> np.ndarray:
    """(titles, width) float32, zeros for empty texts; runs as one Ray task."""
    index = [i for i, text in enumerate(texts) if text]
    ray = need_ray()
    task = ray.remote(num_gpus=1 if config.device == "cuda" else 0, max_retries=3)(tune_and_encode)
    encoded = np.empty((0, 0), np.float32)
    for reference in task.remote([texts[i] for i in index], config, pairs, seed):
        found = ray.get(reference)
        if isinstance(found, np.ndarray):
            encoded = found
        elif progress:
            progress("fine-tuning the text encoder", found, config.fine_tune_steps)
    vectors = np.zeros((len(texts), encoded.shape[1]), dtype=np.float32)
    vectors[index] = encoded
    return vectors


def tune_and_encode(
    texts: list[str], config: TextConfig, pairs: Sequence[TextPair], seed: int
) -> Iterator[int | np.ndarray]:
    """The number of each finished step of fine-tuning, then (texts, width) float32."""
    from mtrec_ray.lake.text_encoder import TextEncoder

    encoder = TextEncoder.load(config).to(config.device)
    if config.fine_tune_steps:
        yield from encoder.fine_tune(pairs, config.fine_tune_steps, seed)
    yield encoder.encode(texts)
