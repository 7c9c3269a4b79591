"""An attacker who has user vectors of many histories of each labelled person.

It is tested on one vector of other people. A map that depends on a user's own value, such as a personal prompt, may
pass attackers with one vector a person and still write the value: vectors lie on a thin set, as the last titles decide,
and a step off it shows to whoever has enough vectors of few people. On MovieLens-1M an eliminator of gender left an AUC
of .57 to attackers with one vector, and gave .75 to this one, for whom the backbone's own vectors gave .66 (trained on
16 histories of each of 865 people).

Legend: P labelings, n / v / t train, validation and test rows, d input width, A attribute values.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrec_ray.evaluation.attackers import AttackData, Attacker, balanced_log_loss
from mtrec_ray.evaluation.batched_logistic import class_weights

HISTORIES_PER_USER, EVENTS_BETWEEN = 16, 2
"""Histories before the test event, before the second event before it, and so on."""
MAX_HISTORY_USERS = 2000  # of the audit split, about, drawn by hash: this attack takes longer than the others
MAX_HISTORY_PERMUTATIONS = 4
HIDDEN = (256, 128)


def deep_mlp_scores(data: AttackData, max_epochs: int = 30, patience: int = 3) -> np.ndarray:
    """MLPs with two hidden layers and dropout, of the epoch with the best validation loss.

    One labeling after the other: permuted labels stop after a few epochs, so a null costs little. Each has the same
    initial weights, batches and dropout, so results do not depend on the number of labelings.
    """
    train, validation, test = (
        torch.from_numpy(np.asarray(x, np.float32)) for x in (data.train, data.validation, data.test)
    )
    scored = []
    for labels, validation_labels in zip(data.train_labels, data.validation_labels, strict=True):
        generator = torch.Generator().manual_seed(data.seed)
        weights = torch.from_numpy(class_weights(labels[None], data.num_values)[0])
        network = _DeepMlp((train.shape[1], *HIDDEN, data.num_values), generator)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
        target, best, best_loss, best_epoch = torch.from_numpy(labels), network.scores(test), np.inf, 0
        for epoch in range(max_epochs):
            for rows in torch.randperm(len(train), generator=generator).split(256):
                each = functional.cross_entropy(network(train[rows], generator), target[rows], reduction="none")
                optimizer.zero_grad()
                (each * weights[rows]).mean().backward()
                optimizer.step()
            loss = balanced_log_loss(network.scores(validation)[None], validation_labels[None])[0]
            if loss < best_loss:
                best, best_loss, best_epoch = network.scores(test), loss, epoch
            elif epoch - best_epoch >= patience:
                break
        scored.append(best)
    return np.stack(scored)


class _DeepMlp(nn.Module):
    """Layers with ReLU, whose weights and dropout come from a generator."""

    def __init__(self, widths: tuple[int, ...], generator: torch.Generator, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers, self.keep = nn.ModuleList(), 1 - dropout
        for width, next_width in pairwise(widths):
            layer = nn.Linear(width, next_width)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)

    def forward(self, inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits, (n, d) -> (n, A); dropout where a generator is given."""
        first, *others = self.layers
        hidden = first(inputs)
        for layer in others:
            hidden = functional.relu(hidden)
            if generator is not None:
                hidden = hidden * (torch.rand(hidden.shape, generator=generator) < self.keep) / self.keep
            hidden = layer(hidden)
        return hidden

    @torch.no_grad()
    def scores(self, inputs: Tensor) -> np.ndarray:
        """Log probabilities: (t, d) -> (t, A) float32."""
        return functional.log_softmax(self(inputs), dim=-1).numpy()


HISTORY_ATTACKERS: dict[str, Attacker] = {"deep_mlp": deep_mlp_scores}
