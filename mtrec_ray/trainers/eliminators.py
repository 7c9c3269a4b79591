"""Trainer of one pack of eliminators: adversarial steps, transport, choice of weights.

Each combination keeps, at each validation, weights whose NDCG@10 is at or above its floor: a fraction of the
backbone's, lower where the backbone leaks more of the combination's attributes. Below the floor, more accurate weights
replace less accurate ones. The transport has the largest strength at which it stays above the floor by itself.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.combinations import NONE, Combination, combination_name
from mtrec_ray.hashing import mix
from mtrec_ray.models.fairness_methods import ExtendedEliminatorMethod
from mtrec_ray.models.transport import FOLDS, STRENGTHS, num_steps
from mtrec_ray.trainers.adversarial import AdversarialTrainer, EliminatorData, UserRows
from mtrec_ray.trainers.backbone import held_out_metrics, vectors_in_chunks
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.probe_leakage import probe_leakage
from mtrec_ray.workers import Workers


class EliminatorTrainer(AdversarialTrainer):
    """Trains a pack for all epochs; each combination keeps weights that hold its NDCG floor."""

    def __init__(
        self,
        config: EliminatorsConfig,
        combinations: Sequence[Combination],
        data: EliminatorData,
        workers: Workers | None = None,
    ) -> None:
        settings = config.adversary.model_dump(exclude={"discriminator_steps"})
        super().__init__(config, combinations, data, workers, **settings)
        floors, ndcg = self._ndcg_floors()
        self.figures = {NONE: {"ndcg": ndcg}}
        self.figures |= {name: {"ndcg_floor": floor, "step": 0.0} for name, floor in floors.items()}

    @property
    def with_transport(self) -> ExtendedEliminatorMethod | None:
        """The averaged method, if it is a pack of eliminators with a transport."""
        method = self.averaged
        return method if isinstance(method, ExtendedEliminatorMethod) and method.pack.config.transport_units else None

    def start(self) -> bool:
        """Fit the transport, limit its strength by the NDCG floor, and keep what there is."""
        self.fit_transport()
        if method := self.with_transport:
            strengths = method.pack.transport_strength[:, 0, 0]  # (K,) a view
            self._record("strength_confirmed", strengths.tolist())
            self._limit_strengths(strengths)
            self._record("strength", strengths.tolist())
        self._record("ndcg", self.validate())
        self._keep(self.method, ...)
        return True

    def reach_milestone(self) -> dict[str, float]:
        """Fit the transport again, validate, and keep the combinations that are accurate enough."""
        self.fit_transport()
        figures = {f"val/ndcg/{name}": ndcg for name, ndcg in self.keep_accurate().items()}
        if self.next_step == self.num_steps:
            self.finish()
        return {"train/loss": self.recent.take()["train/loss"]} | figures

    def keep_accurate(self) -> dict[str, float]:
        """Validate, keep what holds its floor or is more accurate than before; NDCG@10 of each."""
        measured = dict(zip(self.names, self.validate(), strict=True))
        for row, (name, ndcg) in enumerate(measured.items()):
            kept = self.figures[name]
            if ndcg >= kept["ndcg_floor"] or ndcg > kept["ndcg"]:
                self._keep(self.averaged, ... if len(measured) == 1 else row)
                kept |= {"ndcg": ndcg, "step": float(self.next_step)}
        return measured

    def fit_transport(self) -> None:
        """Fit the maps, which live and averaged weights share, to the users of all workers.

        Rows are sorted by user, so the number of workers changes nothing; all take the first worker's result, since
        different machines round differently.
        """
        config, workers, method = self.config, self.workers, self.with_transport
        if method is None:
            return
        prefixes, first = self.data.prefixes, self.next_step == 0
        keys = prefixes.keys.view(np.int64)
        history, values, user = self.tensors(prefixes.history, prefixes.attribute_index, keys)
        rows = UserRows.gather(workers, values, user)
        vectors = rows.vectors(workers, vectors_in_chunks(method.vectors_before_transport, history, values))
        values, user = rows.values, rows.keys
        (fold,) = self.tensors((mix(user.cpu().numpy(), "transport", config.seed) % np.uint64(FOLDS)).astype(np.int64))
        method.pack.fit_transport(
            vectors,
            values,
            user,
            fold,
            method.backbone.title_vectors(),
            weight=config.transport.weight,
            steps=num_steps(config.transport.passes if first else config.transport.later_passes, len(user)),
            seed=config.seed + self.next_step,
            find_strength=first,
        )
        for tensor in vars(method.pack.transport).values():
            workers.all_reduce(tensor if workers.rank == 0 else tensor.zero_())

    def _limit_strengths(self, strengths: Tensor) -> None:
        """Lower each transport's strength (K,) until it holds its NDCG floor by itself."""
        for lower in reversed(STRENGTHS[:-1]):
            measured = zip(self.names, self.validate(), strict=True)
            below = torch.tensor([ndcg < self.figures[name]["ndcg_floor"] for name, ndcg in measured])
            if not below.any():
                break
            strengths.copy_(torch.where(below.to(self.device), strengths.clamp(max=lower), strengths))

    def _ndcg_floors(self) -> tuple[dict[str, float], float]:
        """Minimum NDCG@10 of each combination, from the backbone's leakage; the backbone's own."""
        users, optim, backbone, workers = self.data.users, self.config.optim, self.data.backbone, self.workers
        history, values, keys = self.tensors(users.history, users.attribute_index, users.keys.view(np.int64))
        vectors = vectors_in_chunks(backbone.user_vectors, history)  # (U, d)
        means = held_out_metrics(users, vectors, backbone.title_vectors()).means()
        ndcg = workers.mean(means, len(users))["ndcg"]
        vectors, values, keys = (workers.gather_rows(rows) for rows in (vectors, values, keys))
        leakage = probe_leakage(vectors, values, keys.cpu().numpy(), self.data.num_values)
        most = {combination_name(chosen): max(leakage[one] for one in chosen) for chosen in self.method.combinations}
        floors = {n: min(optim.min_ndcg_ratio, 1 - optim.leakage_budget * found**2) * ndcg for n, found in most.items()}
        return floors, ndcg
