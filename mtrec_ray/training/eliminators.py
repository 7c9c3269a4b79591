"""`mtrec train eliminators`: packs of combinations as parallel jobs, in one run folder.

Every unfinished pack is a Ray Train run, some side by side; an interrupt waits for none of them. A failed pack is
retried, then left out while the others continue; a user's mistake stops all.
"""

import logging
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from itertools import combinations

import numpy as np
from scipy.stats import contingency

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError, find_user_error
from mtrec_ray.files import exists, write_json
from mtrec_ray.trainers.adversarial import EliminatorData
from mtrec_ray.trainers.closed_form import MAPPED_EVENTS, fit_closed_form
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig, parse_combinations
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.training.eliminators_run import EliminatorsRecord
from mtrec_ray.training.fit import POLL_S, check_resources, fit, in_background, jobs_that_fit
from mtrec_ray.training.weights import save_weights
from mtrec_ray.workers import Workers

logger = logging.getLogger(__name__)

FEW_USERS = 20  # of a value: fewer tell next to nothing of its mean
MAX_ASSOCIATION = 0.5  # of two attributes that are hidden together; age and occupation of MovieLens-1M have 0.44
ATTEMPTS = 2  # times a pack is started before the others finish without it


class PacksFailed(RuntimeError):
    """Some packs could not be trained; the others are done."""


def train_eliminators(config: EliminatorsConfig, progress: ProgressCallback | None = None) -> EliminatorsRecord:
    """Train every combination, or resume the unfinished packs.

    Raises:
        UserError: as `Record.start`; or a mistake that a pack finds, such as a lake changed meanwhile.
        PacksFailed: packs that failed twice, after all others were done.
    """
    backbone = BackboneRecord.load_done(config.backbone)
    new = EliminatorsRecord(
        status="training",
        config=config,
        lake_hash=backbone.open_lake().manifest.lake_hash,
        backbone_hash=backbone.weights_hash(),
        attributes=backbone.attributes,
        packs=make_packs(config, backbone.attributes),
    )
    closed_form = config.method == "closed_form"
    record = new.start(
        lambda: None if closed_form else check_resources(config.runner, config.jobs_at_once or 1), progress
    )
    if record.status == "done":
        return record
    if closed_form:
        fit_maps(record, progress)
        return record.finish()
    train_packs(record, progress)
    record = record.finish()
    if config.method != "pfrec":
        _warn_of_floors(record)
    _warn_of_written_values(record)
    return record


def make_packs(config: EliminatorsConfig, attributes: dict[str, list[str]]) -> dict[str, list[Combination]]:
    """Name of each job -> what it trains."""
    chosen = parse_combinations(config.combinations, attributes)
    if config.method == "filter":
        chosen = [(name,) for name in attributes if any(name in combination for combination in chosen)]
    sizes = {"fine_tuning": 1, "closed_form": len(chosen)}
    size = sizes.get(config.method, config.pack_size)
    starts = range(0, len(chosen), size)
    return {f"pack{number:03d}": chosen[start : start + size] for number, start in enumerate(starts)}


def fit_maps(record: EliminatorsRecord, progress: ProgressCallback | None) -> None:
    """Fit closed-form maps in this process; they are small enough for no job to be started."""
    (pack,) = record.packs
    data = record.data(Workers(), MAPPED_EVENTS)
    _warn_of_hard_values(record, data)
    tensors, figures = fit_closed_form(record.config, record.packs[pack], data, progress)
    save_weights(record.weights_uris()[pack], tensors, figures)


def _warn_of_hard_values(record: EliminatorsRecord, data: EliminatorData) -> None:
    """Warn of values of few users, and of attributes hidden together that tell of each other."""
    for (name, values), counts in zip(record.attributes.items(), data.value_counts, strict=True):
        few = [f"{value} ({count})" for value, count in zip(values, counts, strict=True) if count < FEW_USERS]
        if few and any(name in combination for combination in record.combinations):
            logger.warning(
                f"attribute {name}: too few users of the train split to know {', '.join(few)} by: their vectors are "
                "moved nearly as those of all users, and may tell the value; join values, or take a larger lake"
            )
    index = dict(zip(record.attributes, data.users.attribute_index.T, strict=True))
    together = [pair for combination in record.combinations for pair in combinations(combination, 2)]
    for one, other in dict.fromkeys(together):
        common = cramers_v(index[one], index[other])
        if common > MAX_ASSOCIATION:
            logger.warning(
                f"attributes {one} and {other} tell of each other (Cramer's V {common:.2f}): hidden together, vectors "
                f"are moved twice by what they have in common, which can show both; hide {one} or {other} alone"
            )


def cramers_v(one: np.ndarray, other: np.ndarray) -> float:
    """Association of two attributes among users with both (N,), -1 unknown: 0 none, 1 full."""
    known = (one >= 0) & (other >= 0)
    table = np.asarray(contingency.crosstab(one[known], other[known])[1] if known.any() else [[1]])
    return float(contingency.association(table)) if min(table.shape) > 1 else 0.0


def train_packs(record: EliminatorsRecord, progress: ProgressCallback | None) -> None:
    """Train all unfinished packs, as many at once as the cluster holds."""
    if not record.config.runner.workers:
        for pack in record.packs:
            if not exists(record.done_uri(pack)):
                _train_pack(record, pack, progress)
        return
    fitting = jobs_that_fit(record.config.runner)
    at_once = min(record.config.jobs_at_once or fitting, fitting)
    waiting = [pack for pack in record.packs if not exists(record.done_uri(pack))]
    running: dict[Future[None], str] = {}
    attempts, failed = Counter[str](), dict[str, BaseException]()
    mistake: UserError | None = None
    while waiting or running:
        while waiting and len(running) < at_once:
            pack = waiting.pop(0)
            running[in_background(partial(_train_pack, record, pack, progress))] = pack
            attempts[pack] += 1
        for ended in wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
            pack, error = running.pop(ended), ended.exception()
            failed.pop(pack, None)
            if error is None:
                continue
            logger.warning("pack %s failed (attempt %d): %s", pack, attempts[pack], error)
            failed[pack] = error
            mistake = mistake or find_user_error(error)
            if mistake:  # it is in the inputs of all packs
                waiting.clear()
            elif attempts[pack] < ATTEMPTS:
                waiting.insert(0, pack)
    if mistake:
        raise mistake
    if failed:
        pack, error = next(iter(failed.items()))
        raise PacksFailed(
            f"{len(failed)} of {len(record.packs)} packs failed ({', '.join(failed)}), the others are done; "
            f"start the same command again to retry. {pack}: {error}"
        ) from error


def _train_pack(record: EliminatorsRecord, pack: str, progress: ProgressCallback | None) -> None:
    names = ", ".join(map(combination_name, record.packs[pack]))
    label = f"{pack} ({names if len(names) < 40 else f'{len(record.packs[pack])} combinations'})"
    fit(record, progress and (lambda stage, *counts: progress(label, *counts)), pack)
    write_json(record.done_uri(pack), {"combinations": names})


def _warn_of_floors(record: EliminatorsRecord) -> None:
    """Warn where the accuracy floor limits the transport, and where training never reached it."""
    for name in map(combination_name, record.combinations):
        found = record.figures[name]
        strength, confirmed = found.get("strength", 1.0), found.get("strength_confirmed", 1.0)
        if strength < confirmed:
            logger.warning(
                f"combination {name}: transport strength limited to {strength:g} by the accuracy floor; "
                f"cross-validation supports {confirmed:g}; "
                "lower optim.min_ndcg_ratio or raise optim.leakage_budget to hide more"
            )
        if not found["step"] or found["ndcg"] < found["ndcg_floor"]:
            kept = f"its most accurate weights (step {found['step']:.0f})" if found["step"] else "untrained weights"
            logger.warning(
                f"combination {name}: NDCG@10 was below the floor at every validation; kept {kept} and the transport "
                "fitted before training; lower optim.min_ndcg_ratio, adversary.weight or adversary.generator_lr"
            )


def _warn_of_written_values(record: EliminatorsRecord) -> None:
    """Warn where vectors tell more of an attribute to hide than the backbone's do."""
    personal = record.config.method in ("eliminator", "pfrec") and record.config.shape.personal_prompt
    fix = "lower optim.epochs or adversary.generator_lr" + (", or set shape.personal_prompt=false" if personal else "")
    for name, attribute, auc, of_backbone in record.written_values():
        logger.warning(
            f"combination {name}: its vectors write {attribute}, which they should hide: a linear probe's AUC on the "
            f"train split is {auc:.3f}, on the backbone's vectors {of_backbone:.3f}; {fix}"
        )
