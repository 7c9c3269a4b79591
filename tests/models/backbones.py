"""Small float64 backbones of two layers and heads, away from special initial values so that every part matters."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.shapes import SequentialConfig

Kind = Literal["sasrec", "bert4rec"]
KINDS: list[Kind] = ["sasrec", "bert4rec"]
NUM_TITLES, L, D, LAYERS, HEADS = 30, 6, 16, 2, 2
SHAPE = {"history": L, "width": D, "num_layers": LAYERS, "num_heads": HEADS}
HISTORIES = torch.tensor([[1, 2, 3, -1, -1, -1], [4, 5, 6, 7, 8, 9], [3, -1, -1, -1, -1, -1]])


def perturb(module: nn.Module, generator: torch.Generator, scale: float) -> None:
    """Move every parameter, so that nothing is zero or one by construction."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def make_backbone(kind: Kind, *, seed: int = 0, dropout: float = 0.0, scale: float = 0.2) -> SequentialBackbone:
    backbone = SequentialBackbone(SequentialConfig(num_titles=NUM_TITLES, kind=kind, **SHAPE, dropout=dropout)).double()
    generator = torch.Generator().manual_seed(seed)
    backbone.init_weights(generator)
    perturb(backbone, generator, scale)
    return backbone.eval()


def close(one: Tensor, other: Tensor, name: str = "") -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=lambda text: f"{name}: {text}")
