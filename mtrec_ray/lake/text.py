"""Title text through a transformer: mean of the last layer's token vectors (paper A, 3.1)."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mtrec_ray.errors import UserError
from mtrec_ray.lake.cluster import cluster_resources, joins_cluster, need_ray
from mtrec_ray.lake.embed_config import TextConfig

logger = logging.getLogger(__name__)


def title_texts(titles: pa.Table) -> list[str]:
    """Name, genres and synopsis of each title in one text; empty where there is none."""
    columns = [titles[name].to_pylist() for name in ("name", "genres", "synopsis")]
    return [". ".join(part for part in parts if part) for parts in zip(*columns, strict=True)]


def encode_texts(texts: list[str], config: TextConfig) -> np.ndarray:
    """(titles, width) float32, zeros for empty texts; runs on a Ray Data actor.

    Raises:
        UserError: the model cannot be loaded, or there is no such device.
    """
    if config.device == "cuda" and not cluster_resources().get("GPU"):
        message = "text.device = cuda needs a GPU and the cluster has none, so Ray would wait for one: use cpu"
        if not joins_cluster():
            raise UserError(message)
        logger.warning("%s, unless the cluster can add one", message)
    width = int(load_encoder(config)[1].config.hidden_size)  # fails here first: an actor's error is hard to read
    index = [i for i, text in enumerate(texts) if text]
    rows = pa.table({"index": pa.array(index, pa.int64()), "text": pa.array([texts[i] for i in index], pa.string())})
    need_ray()
    encoded = ray.data.from_arrow(rows).map_batches(
        TextEncoder,
        fn_constructor_kwargs={"config": config.model_dump()},
        batch_size=config.batch_size,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_gpus=1 if config.device == "cuda" else 0,
    )
    vectors = np.zeros((len(texts), width), dtype=np.float32)
    for batch in encoded.iter_batches(batch_size=None, batch_format="numpy"):
        vectors[batch["index"]] = np.stack(list(batch["vector"]))
    return vectors


class TextEncoder:
    """Ray Data actor: adds `vector` to batches of `text`."""

    def __init__(self, config: dict[str, Any]) -> None:
        import torch

        self.torch, self.config = torch, TextConfig.model_validate(config)
        self.tokenizer, encoder = load_encoder(self.config)
        self.model = encoder.to(self.config.device).eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tokens = self.tokenizer(
            batch["text"].tolist(),
            padding=True,
            truncation=True,
            max_length=self.config.max_tokens,
            return_tensors="pt",
        ).to(self.config.device)
        with self.torch.inference_mode():
            states = self.model(**tokens).last_hidden_state  # (B, tokens, width)
        mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)  # (B, tokens, 1)
        vectors = (states * mask).sum(1) / mask.sum(1)  # (B, width)
        return {"index": batch["index"], "vector": vectors.float().cpu().numpy()}


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
