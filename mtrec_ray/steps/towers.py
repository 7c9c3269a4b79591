"""Both towers forward and backward, depth by depth, each distinct row once.

Legend: `N` distinct rows of a tower (`U` users or `T` titles), `P` pairs, `d` width.
The towers walk side by side so that their batch normalisations of one depth share one call between the workers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtrec_ray.models.batch_norm import PairBatchNorm
from mtrec_ray.models.matmul import matmul
from mtrec_ray.models.two_tower import TowerLayer, TwoTower
from mtrec_ray.steps.batch import PairBatch
from mtrec_ray.steps.pair_norm import (
    NormTape,
    local_moments,
    norm_gradient_sums,
    norm_input_gradient,
    normalise,
    relu_backward,
)
from mtrec_ray.steps.workspace import Workspace

AllReduce = Callable[[Tensor], Tensor]


@dataclass
class LayerTape:
    """One tower layer's way forward: what its backward reads."""

    name: str
    layer: TowerLayer
    inputs: Tensor  # (N, width_in)
    outputs: Tensor  # (N, d); the same memory as the dense product where no normalisation follows
    norm: NormTape | None = None


def towers_forward(
    model: TwoTower,
    batch: PairBatch,
    reduce: AllReduce,
    workspace: Workspace,
    compute_dtype: torch.dtype | None,
) -> tuple[list[list[LayerTape]], Tensor]:
    """Per depth the tapes [user tower, title tower], and the number of pairs of all workers (at least 1)."""
    dtype = batch.labels.dtype
    rows = [batch.user_features.to(dtype), batch.title_features.to(dtype)]
    row_weights = [batch.user_offsets.diff().to(dtype), batch.title_offsets.diff().to(dtype)]  # (U,), (T,)
    depths: list[list[LayerTape]] = []
    for depth, layers in enumerate(zip(model.user_tower.layers, model.title_tower.layers, strict=True)):
        tapes = []
        for name, layer, inputs in zip(("user", "title"), layers, rows, strict=True):
            product = workspace.take(f"{name} {depth}", len(inputs), model.config.d, like=layer.weight)
            matmul(inputs, layer.weight.t(), out=product, compute_dtype=compute_dtype)  # (N, d)
            tapes.append(LayerTape(f"{name} {depth}", layer, inputs, product))
        norms = [tape.layer.norm for tape in tapes if tape.layer.norm is not None]
        if norms:
            _normalise(tapes, norms, row_weights, batch.num_pairs, reduce, workspace)
        else:
            for tape in tapes:
                tape.outputs.add_(tape.layer.bias)
                if tape.layer.relu:
                    tape.outputs.relu_()
        rows = [tape.outputs for tape in tapes]
        depths.append(tapes)
    first = depths[0][0].norm
    assert first is not None, "the first layer is always normalised"
    return depths, first.num_pairs


def towers_backward(
    depths: Sequence[Sequence[LayerTape]],
    gradients: list[Tensor],
    reduce: AllReduce,
    compute_dtype: torch.dtype | None,
) -> None:
    """Gradients of the towers' (U, d) and (T, d) outputs, overwritten -> `.grad` of every tower parameter."""
    for depth in reversed(range(len(depths))):
        tapes = depths[depth]
        if tapes[0].norm is not None:
            _normalise_backward(tapes, gradients, reduce)
        else:
            for tape, gradient in zip(tapes, gradients, strict=True):
                if tape.layer.relu:
                    relu_backward(gradient, tape.outputs)
                set_gradient(tape.layer.bias, gradient.sum(0))
        gradients = [
            _dense_backward(tape, gradient, depth > 0, compute_dtype)
            for tape, gradient in zip(tapes, gradients, strict=True)
        ]


def set_gradient(parameter: nn.Parameter | None, gradient: Tensor) -> None:
    """Copy into the parameter's allocated `.grad`."""
    assert parameter is not None, "a layer has the parameters its gradients belong to"
    assert parameter.grad is not None, "the step allocates every .grad first"
    parameter.grad.copy_(gradient)


def _normalise(
    tapes: list[LayerTape],
    norms: list[PairBatchNorm],
    row_weights: list[Tensor],
    num_pairs: int,
    reduce: AllReduce,
    workspace: Workspace,
) -> None:
    """Normalise both towers' products of one depth; fills the tapes."""
    local = [
        local_moments(norm, tape.outputs, weights, num_pairs)
        for norm, tape, weights in zip(norms, tapes, row_weights, strict=True)
    ]
    summed = reduce(torch.cat([moments for _, moments in local])).chunk(2)
    for tape, norm, weights, (mean, _), moments in zip(tapes, norms, row_weights, local, summed, strict=True):
        centred = tape.outputs
        tape.outputs = workspace.take(f"{tape.name} normalised", *centred.shape, like=centred)
        tape.norm = normalise(norm, centred, weights, mean, moments, relu=tape.layer.relu, out=tape.outputs)


def _normalise_backward(tapes: Sequence[LayerTape], gradients: list[Tensor], reduce: AllReduce) -> None:
    """Both towers' normalisations of one depth; `gradients` become those of the dense products over their scale."""
    norms = [tape.norm for tape in tapes if tape.norm is not None]
    sums = []
    for tape, norm, gradient in zip(tapes, norms, gradients, strict=True):
        sums.append(norm_gradient_sums(norm, gradient, tape.outputs if tape.layer.relu else None))
        set_gradient(norm.norm.bias, sums[-1][0])
        set_gradient(norm.norm.weight, sums[-1][1])
    for norm, gradient, global_sums in zip(norms, gradients, reduce(torch.stack(sums)), strict=True):
        norm_input_gradient(norm, gradient, global_sums)


def _dense_backward(tape: LayerTape, gradient: Tensor, needs_input: bool, compute_dtype: torch.dtype | None) -> Tensor:
    """Write the weight's gradient; return the input's (N, width_in), which the first layer does not need.

    The normalisation's scale is left out of `gradient`: it goes into the small weight matrices instead.
    The input's gradient takes the memory of the layer's outputs, which nothing reads any more.
    """
    weight, weight_gradient = tape.layer.weight, tape.layer.weight.grad
    assert weight_gradient is not None, "the step allocates every .grad first"
    matmul(gradient.t(), tape.inputs, out=weight_gradient, compute_dtype=compute_dtype)
    if tape.norm is not None:
        weight_gradient.mul_(tape.norm.scale.unsqueeze(1))
        weight = weight * tape.norm.scale.unsqueeze(1)
    return matmul(gradient, weight, out=tape.outputs, compute_dtype=compute_dtype) if needs_input else gradient
