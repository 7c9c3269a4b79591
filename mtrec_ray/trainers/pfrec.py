"""Trainer of paper B's eliminators as they are (2.3 to 3.1), until a probe reads no less.

The generator's loss is BPR - lambda * the sum of the discriminators' cross entropies (eq. 5), on the frozen backbone;
users of unknown value are masked out; RMSprop moves both. An instance is a history and the title that follows, as in
the code of paper B's authors: a column of a crop. Both losses are means over the instances of a batch, so a batch of
256 instances is one of about 16 crops with a history of 20, as a user's last crop is not full. As in that code too,
discriminators move at every batch and the generator at each fifth. If both move at every batch, prompts write the
value: on MovieLens-100K a probe of the train split read age with AUC 0.72 after 15 epochs, with 0.57 after 75 of these,
with 0.61 from the backbone.

The paper does not say when training ends. Here a tenth of the train split is not trained on; after each epoch a linear
probe reads the attributes to hide from those users' vectors, and each combination keeps the weights with the lowest
AUC, of its attributes the largest. It is finished when that has not fallen for `PATIENCE` epochs. The probe is fitted
on the users of other folds, trained on or not: fitted on the few held out alone it is nearly blind to a written value
(0.59 of that age; fitted on those trained on 0.76, and 0.71 of users of the audit split).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.combinations import NONE, Combination
from mtrec_ray.errors import UserError
from mtrec_ray.trainers.adversarial import AdversarialTrainer, EliminatorData, UserRows
from mtrec_ray.trainers.backbone import held_out_metrics, vectors_in_chunks
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.workers import Workers

PATIENCE = 10  # epochs without a lower AUC before a combination is finished


class PFRecTrainer(AdversarialTrainer):
    """Trains a pack until all its combinations are finished; keeps each at its lowest AUC."""

    def __init__(
        self,
        config: EliminatorsConfig,
        combinations: Sequence[Combination],
        data: EliminatorData,
        workers: Workers | None = None,
    ) -> None:
        lr, columns = config.adversary.generator_lr, data.backbone.num_columns
        settings = {"generator_lr": lr, "discriminator_lr": lr, "columns": columns}  # every column is an instance
        super().__init__(config, combinations, data, workers, weight=config.adversary.weight, **settings)
        parts = data.users.only(~np.isin(data.users.keys, data.prefixes.keys)), data.prefixes
        joined = ([getattr(part, of) for part in parts] for of in ("history", "attribute_index", "keys"))
        history, values, keys = self.tensors(*(np.concatenate(of).view(np.int64) for of in joined))
        self.histories = history, values
        self.probed = UserRows.gather(self.workers, values, keys)
        (keys,) = self.tensors(data.prefixes.keys.view(np.int64))
        self.unseen = self.workers.gather_rows(keys).cpu().numpy().view(np.uint64)  # users who are held out
        (history,) = self.tensors(data.users.history)
        vectors = vectors_in_chunks(data.backbone.user_vectors, history)  # (U, d)
        means = held_out_metrics(data.users, vectors, data.backbone.title_vectors()).means()
        self.figures = {NONE: {"ndcg": self.workers.mean(means, len(data.users))["ndcg"]}}
        self.figures |= {name: {"ndcg": 0.0, "step": 0.0} for name in self.names}
        self._record("probe_auc", [1.0] * len(self.names))

    def start(self) -> bool:
        """UserError where a probe cannot read an attribute of the held-out users."""
        self.probe()
        return False

    def reach_milestone(self) -> dict[str, float]:
        """Probe, keep what hides most so far, and stop when no combination is left to improve."""
        every, steps = self.config.optim.evaluate_every, self.data.schedule.steps_per_epoch[0]
        epoch = self.next_step // steps
        aucs, ndcgs, finished = self.probe(), self.validate(), []
        for row, (name, auc, ndcg) in enumerate(zip(self.names, aucs, ndcgs, strict=True)):
            kept = self.figures[name]
            waited = epoch - kept["step"] // steps if kept["step"] else 0
            was_finished = waited - every >= PATIENCE
            if not kept["step"] or (auc < kept["probe_auc"] and not was_finished):
                self._keep(self.method, row)
                kept |= {"probe_auc": auc, "ndcg": ndcg, "step": float(self.next_step)}
                waited = 0
            finished.append(waited >= PATIENCE)
        self.stopped = all(finished)
        if self.stopped or self.next_step == self.num_steps:
            self.finish()
        figures = {f"val/probe_auc/{name}": auc for name, auc in zip(self.names, aucs, strict=True)}
        figures |= {f"val/ndcg/{name}": ndcg for name, ndcg in zip(self.names, ndcgs, strict=True)}
        return {"train/loss": self.recent.take()["train/loss"], "epoch": float(epoch)} | figures

    def probe(self) -> list[float]:
        """A probe's largest AUC over the attributes of each combination, on users held out."""
        vectors = self.probed.vectors(self.workers, vectors_in_chunks(self.method.user_vectors, *self.histories))
        if not vectors.isfinite().all():
            raise self.diverged("users' vectors are nan or inf")
        largest = []
        for own, combination in zip(vectors, self.method.combinations, strict=True):
            largest.append(max(self._auc(own, name) for name in combination))
        found = torch.tensor(largest, dtype=torch.float64, device=self.device)
        return self.workers.all_reduce(found if self.workers.rank == 0 else found.zero_()).tolist()  # the first's

    def _auc(self, vectors: Tensor, attribute: str) -> float:
        found = self.probed.probe(vectors, self.data.num_values, attribute)
        auc = found.only(self.unseen).auc if found else np.nan
        if np.isnan(auc):
            raise UserError(
                f"attribute {attribute!r}: of the {len(np.unique(self.unseen))} users held out of training too few "
                "have a known value for the probe that ends it: leave it out of combinations, lower the backbone's "
                "sequences.min_events or sequences.audit_fraction, or take a larger lake"
            )
        return auc
