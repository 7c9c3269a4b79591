"""Title text through a transformer: mean of the last layer's token vectors (paper A, 3.1)."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.errors import UserError
from mtrec_ray.lake.cluster import cluster_resources, joins_cluster, need_ray
from mtrec_ray.lake.embed_config import TextConfig

BATCH_SIZE = 64  # Titles per forward pass
MAX_TOKENS = 128  # Longer texts are truncated

logger = logging.getLogger(__name__)


def title_texts(titles: pa.Table) -> list[str]:
    """Name, genres and synopsis of each title in one text; empty where there is none."""
    columns = [titles[name].to_pylist() for name in ("name", "genres", "synopsis")]
    return [". ".join(part for part in parts if part) for parts in zip(*columns, strict=True)]


def encode_texts(texts: list[str], config: TextConfig) -> np.ndarray:
    """(titles, width) float32, zeros for empty texts; runs as one Ray task."""
    if config.device == "cuda" and not cluster_resources().get("GPU"):
        message = "text.device = cuda needs a GPU and the cluster has none, so Ray would wait for one: use cpu"
        if not joins_cluster():
            raise UserError(message)
        logger.warning("%s, unless the cluster can add one", message)
    width = int(load_encoder(config)[1].config.hidden_size)  # fails here first: a worker's error is hard to read
    vectors = np.zeros((len(texts), width), dtype=np.float32)
    index = [i for i, text in enumerate(texts) if text]
    ray = need_ray()
    task = ray.remote(num_gpus=1 if config.device == "cuda" else 0, max_retries=3)(encode_batches)
    vectors[index] = ray.get(task.remote([texts[i] for i in index], config))
    return vectors


def encode_batches(texts: list[str], config: TextConfig) -> np.ndarray:
    """(texts, width) float32."""
    import torch

    tokenizer, encoder = load_encoder(config)
    encoder = encoder.to(config.device).eval()
    vectors = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = texts[start : start + BATCH_SIZE]
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = tokens.to(config.device)
        with torch.inference_mode():
            states = encoder(**tokens).last_hidden_state  # (B, tokens, width)
        mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)  # (B, tokens, 1)
        vectors.append(((states * mask).sum(1) / mask.sum(1)).float().cpu().numpy())
    return np.concatenate(vectors)


def load_encoder(config: TextConfig) -> tuple[Any, Any]:
    """Tokenizer and encoder of a Hugging Face name or folder; UserError if unloadable."""
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    assert config.model is not None
    try:
        return AutoTokenizer.from_pretrained(config.model), AutoModel.from_pretrained(config.model)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"text model {config.model!r} cannot be loaded ({str(error).splitlines()[0]}): connect to its hub once, "
            "name a local folder with --set text.model=DIR, or leave text out with --set text.model=null"
        ) from error
