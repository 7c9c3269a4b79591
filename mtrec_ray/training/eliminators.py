"""`mtrec train eliminators`: packs of combinations as parallel jobs, from a frozen backbone to one run folder.

1. open backbone and lake, parse the combinations    (errors before any work)
2. the run of this name, to go on with, or a new one
3. `plan.json`: a counting pass over the users whose attribute values may be seen
4. every unfinished pack is a Ray Train run, some at once; an interrupt waits for none of them
5. a failed pack is started again, then left out: the others go on; a user's mistake lets none begin
"""

import logging
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError, find_user_error
from mtrec_ray.files import absolute, check_writable, join, write_json
from mtrec_ray.lake.cluster import cluster_resources, joins_cluster
from mtrec_ray.streams.crops import SequencePlan, make_sequence_plan
from mtrec_ray.trainers.eliminators_config import EliminatorOptimConfig, EliminatorsConfig, parse_combinations
from mtrec_ray.trainers.runner_config import RunnerConfig
from mtrec_ray.training.backbone_run import BackboneRecord, backbone_hash
from mtrec_ray.training.eliminators_loop import pack_loop_per_worker
from mtrec_ray.training.eliminators_run import (
    EliminatorsRecord,
    is_done,
    pack_uri,
    weights_uri,
)
from mtrec_ray.training.fit import POLL_S, check_resources, fit, in_background
from mtrec_ray.training.record import save_plan
from mtrec_ray.training.weights import load_figures

logger = logging.getLogger(__name__)

LEAST_ATTACKED = 25
"""Users of a known value whom five folds of attackers are likely to take."""


class PacksFailed(RuntimeError):
    """Some packs could not be trained; the others are done."""


def train_eliminators(config: EliminatorsConfig, progress: ProgressCallback | None = None) -> EliminatorsRecord:
    """Train every combination, going on with what is unfinished if the same name was stopped.

    Raises:
        UserError: settings that do not fit the backbone, its lake, the cluster, or the run of the same name; a
            place that cannot be written to; or what a pack finds to be the user's mistake, such as a lake changed
            meanwhile.
        PacksFailed: packs that failed in spite of retries, after all others were done.
    """
    config = config.model_copy(update={"backbone": absolute(config.backbone), "runs": absolute(config.runs)})
    backbone = BackboneRecord.load_done(config.backbone)
    lake = backbone.open_lake()
    record = _new_run(config, backbone).resume_or_new()
    if record.status == "done":
        return record.relocate_inputs(backbone=config.backbone)
    check_writable(config.runs)
    at_once = _jobs_at_once(config)
    if not record.steps_per_pack:  # planned before it is recorded: what fails here leaves no run behind
        sequences, length = backbone.config.sequences, backbone.config.model.history
        plan = make_sequence_plan(lake, sequences, length, train_split_only=True, progress=progress)
        _check_values(record, plan)
        optim = config.optim
        plan.validation_fraction_of(optim.validation_users)
        save_plan(record.uri, plan)
        schedule = plan.schedule(optim.epochs, optim.batch_crops, optim.lanes, config.seed)
        record = record.model_copy(update={"steps_per_pack": schedule.num_steps})
        record.save()
    _train_packs(record, at_once, progress)
    figures = {key: value for pack in record.packs for key, value in load_figures(weights_uri(record, pack)).items()}
    _warn_of_bars(record, figures)
    done = record.model_copy(update={"status": "done", "metrics": figures})
    done.save()
    return done


def make_packs(config: EliminatorsConfig, attributes: dict[str, list[str]]) -> dict[str, list[Combination]]:
    """Name of each job -> what it trains."""
    chosen = parse_combinations(config.combinations, attributes)
    if config.method == "filter":
        chosen = [(name,) for name in attributes if any(name in combination for combination in chosen)]
    size = 1 if config.method == "fine_tuning" else config.pack_size
    starts = range(0, len(chosen), size)
    return {f"pack{number:03d}": chosen[start : start + size] for number, start in enumerate(starts)}


def _new_run(config: EliminatorsConfig, backbone: BackboneRecord) -> EliminatorsRecord:
    if backbone.config.model.kind == "sasrec" and config.optim.mask_share != EliminatorOptimConfig().mask_share:
        raise UserError(f"optim.mask_share has no effect on backbone {config.backbone!r}, a sasrec: drop it")
    return EliminatorsRecord(
        status="training",
        config=config,
        lake_hash=backbone.lake_hash,
        backbone_hash=backbone_hash(backbone),
        attributes=backbone.attributes,
        packs=make_packs(config, backbone.attributes),
    )


def _check_values(record: EliminatorsRecord, plan: SequencePlan) -> None:
    """Attributes that are to be hidden must differ between the users whose values may be seen, and be attackable."""
    kept = plan.sequences.audit_fraction
    counts = dict(zip(record.attributes, plan.value_counts, strict=True))
    for name in {name for combination in record.combinations for name in combination}:
        seen = [value for value, count in zip(record.attributes[name], counts[name], strict=True) if count]
        if len(seen) < 2:
            what = f"only the value {seen[0]!r}" if seen else "no known value"
            raise UserError(
                f"attribute {name!r} has {what} among the {plan.users} users to train on: leave it out of combinations"
            )
        attacked = sum(counts[name]) * kept / (1 - kept)
        if attacked < LEAST_ATTACKED:
            logger.warning(
                "attribute %s: about %.0f of the users kept for attackers have a known value; an audit may refuse so "
                "few: leave it out of combinations, or raise sequences.audit_fraction of the backbone",
                name,
                attacked,
            )


def _warn_of_bars(record: EliminatorsRecord, figures: dict[str, float]) -> None:
    for combination in record.combinations:
        name = combination_name(combination)
        ndcg, bar, step = (figures[f"{figure}/{name}"] for figure in ("val/ndcg", "val/ndcg_floor", "step"))
        used, confirmed = (
            figures.get(f"{figure}/{name}", 1.0) for figure in ("strength", "strength_confirmed")
        )  # no map: 1
        if used < confirmed:
            logger.warning(
                "combination %s: transport strength limited to %g by the accuracy floor; cross-validation supports "
                "%g; lower optim.min_ndcg_ratio or raise optim.leakage_budget to hide more",
                name,
                used,
                confirmed,
            )
        if step and ndcg >= bar:
            continue
        what = f"what was most accurate is kept, of step {step:.0f}" if step else "it is as before the first step"
        logger.warning(
            "combination %s: its NDCG@10 was below its bar (val/ndcg_floor) at every look, so %s (an eliminator's map "
            "is fitted by then); lower optim.min_ndcg_ratio, adversary.weight or .generator_lr",
            name,
            what,
        )


def _jobs_at_once(config: EliminatorsConfig) -> int:
    """How many packs are trained side by side: more than the cluster holds would leave Ray Data no CPU, and hang."""
    check_resources(config.runner)
    fitting = jobs_that_fit(config.runner)
    if config.jobs_at_once is None or config.jobs_at_once <= fitting:
        return config.jobs_at_once or fitting
    message = f"jobs_at_once = {config.jobs_at_once}: the cluster holds {fitting} jobs at once (a CPU stays free)"
    if not joins_cluster():
        raise UserError(f"{message}: lower jobs_at_once or runner.cpus_per_worker")
    logger.warning("%s, unless it can grow: going on with %d", message, fitting)
    return fitting


def _train_packs(record: EliminatorsRecord, at_once: int, progress: ProgressCallback | None) -> None:
    waiting = [pack for pack in record.packs if not is_done(record, pack)]
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
            if mistake:  # it is in what all packs stand on
                waiting.clear()
            elif attempts[pack] <= record.config.retries:
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
    show: ProgressCallback | None = None
    if progress:
        show = lambda _, *counts: progress(label, *counts)  # noqa: E731
    settings = {"record": record.model_dump_json(), "pack": pack}
    runner = record.config.runner
    fit(pack_loop_per_worker, settings, join(record.uri, "packs"), pack, runner, record.steps_per_pack, show)
    write_json(join(pack_uri(record, pack), "done.json"), {"combinations": names})


def jobs_that_fit(runner: RunnerConfig) -> int:
    """Jobs that the cluster holds at once, a CPU left free for Ray Data; one where it has yet to grow."""
    there = cluster_resources()
    fitting = (there.get("CPU", 0) - 1) // (runner.workers * runner.cpus_per_worker)
    if runner.use_gpu:
        fitting = min(fitting, there.get("GPU", 0) // runner.workers)
    return max(1, int(fitting))
