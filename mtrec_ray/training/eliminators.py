"""`mtrec train eliminators`: packs of combinations as parallel jobs, in one run folder.

1. open backbone and lake, parse the combinations    (errors before any work)
2. the stored run of this name to resume, or a new one
3. `plan.json`: a counting pass over the train split's users
4. every unfinished pack is a Ray Train run, some side by side; an interrupt waits for none of them
5. a failed pack is retried, then left out while the others continue; a user's mistake stops all
"""

import logging
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import Any

import torch

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError, find_user_error
from mtrec_ray.files import absolute, check_writable, join, write_json
from mtrec_ray.lake.cluster import cluster_resources, joins_cluster
from mtrec_ray.streams.crops import SequencePlan, make_sequence_plan, sequence_batches
from mtrec_ray.streams.held_out import read_held_out, read_prefixes
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.sequences import VALIDATION_EVENT
from mtrec_ray.tracking.config import check_tracking
from mtrec_ray.trainers.eliminators import PREFIXES_PER_USER, EliminatorData, EliminatorTrainer, Figures
from mtrec_ray.trainers.eliminators_config import EliminatorOptimConfig, EliminatorsConfig, parse_combinations
from mtrec_ray.trainers.runner_config import RunnerConfig
from mtrec_ray.trainers.workers import Workers
from mtrec_ray.training.backbone_run import BackboneRecord, backbone_hash, load_backbone
from mtrec_ray.training.eliminators_run import EliminatorsRecord, is_done, pack_uri, weights_uri
from mtrec_ray.training.fit import POLL_S, check_resources, fit, in_background
from mtrec_ray.training.loop import Training
from mtrec_ray.training.record import load_plan, save_plan
from mtrec_ray.training.weights import load_figures

logger = logging.getLogger(__name__)

MIN_AUDIT_USERS = 25
"""Users with a known value that five folds of attackers need."""


class PacksFailed(RuntimeError):
    """Some packs could not be trained; the others are done."""


def train_eliminators(config: EliminatorsConfig, progress: ProgressCallback | None = None) -> EliminatorsRecord:
    """Train every combination, resuming unfinished packs if the same name was interrupted.

    Raises:
        UserError: settings that do not fit the backbone, its lake, the cluster, or the run of the same name; a
            place that cannot be written to; or a user's mistake that a pack finds, such as a lake changed meanwhile.
        PacksFailed: packs that failed in spite of retries, after all others were done.
    """
    config = config.model_copy(update={"backbone": absolute(config.backbone), "runs": absolute(config.runs)})
    backbone = BackboneRecord.load_done(config.backbone)
    lake = backbone.open_lake()
    record = _new_run(config, backbone).resume_or_new()
    if record.status == "done":
        return record.relocate_inputs(backbone=config.backbone)
    check_tracking(config.tracking)
    check_writable(config.runs)
    at_once = _jobs_at_once(config)
    if not record.steps_per_pack:  # planned before it is recorded: what fails here leaves no run behind
        sequences, length = backbone.config.sequences, backbone.config.model.history
        plan = make_sequence_plan(lake, sequences, length, "train", progress)
        _check_values(record, plan)
        plan.validation_fraction_of(config.optim.validation_users)
        save_plan(record.uri, plan)
        record = record.model_copy(update={"steps_per_pack": _schedule(config, plan).num_steps})
        record.save()
    _train_packs(record, at_once, progress)
    figures: Figures = {}
    for pack in record.packs:
        figures |= load_figures(weights_uri(record, pack))
    _warn_of_floors(record, figures)
    return record.finish(figures)


def make_packs(config: EliminatorsConfig, attributes: dict[str, list[str]]) -> dict[str, list[Combination]]:
    """Name of each job -> what it trains."""
    chosen = parse_combinations(config.combinations, attributes)
    if config.method == "filter":
        chosen = [(name,) for name in attributes if any(name in combination for combination in chosen)]
    size = 1 if config.method == "fine_tuning" else config.pack_size
    starts = range(0, len(chosen), size)
    return {f"pack{number:03d}": chosen[start : start + size] for number, start in enumerate(starts)}


def make_training(arguments: dict[str, Any], workers: Workers, device: torch.device) -> Training:
    """One worker's trainer and batches; `arguments` holds `record` (as JSON) and `pack`."""
    record, pack = EliminatorsRecord.model_validate_json(arguments["record"]), arguments["pack"]
    config, source = record.config, record.source()
    lake, plan = record.open_lake(source.config.lake), load_plan(record.uri, SequencePlan)
    schedule = _schedule(config, plan)
    buckets = range(workers.rank, lake.manifest.num_buckets, workers.size)
    fraction = plan.validation_fraction_of(config.optim.validation_users)
    users = read_held_out(lake, plan.sequences, VALIDATION_EVENT, plan.length, buckets, fraction)
    data = EliminatorData(
        backbone=load_backbone(source, record.backbone_hash),
        attributes=record.attributes,
        value_counts=plan.value_counts,
        schedule=schedule,
        users=users.only(~users.audit_split),
        prefixes=read_prefixes(lake, plan.sequences, plan.length, buckets, fraction, PREFIXES_PER_USER),
    )
    trainer = EliminatorTrainer(config, record.packs[pack], data, device=device, workers=workers)
    batches = partial(sequence_batches, lake, plan, schedule, workers.rank, workers.size)
    return Training(trainer, batches, pack_uri(record, pack), f"{config.name} {pack}", config)


def _schedule(config: EliminatorsConfig, plan: SequencePlan) -> Schedule:
    optim = config.optim
    return plan.schedule(optim.epochs, optim.batch_crops, optim.lanes, config.seed)


def _new_run(config: EliminatorsConfig, backbone: BackboneRecord) -> EliminatorsRecord:
    if backbone.config.model.kind == "sasrec" and config.optim.mask_fraction != EliminatorOptimConfig().mask_fraction:
        raise UserError(f"optim.mask_fraction has no effect on backbone {config.backbone!r}, a sasrec: drop it")
    return EliminatorsRecord(
        status="training",
        config=config,
        lake_hash=backbone.lake_hash,
        backbone_hash=backbone_hash(backbone),
        attributes=backbone.attributes,
        packs=make_packs(config, backbone.attributes),
    )


def _check_values(record: EliminatorsRecord, plan: SequencePlan) -> None:
    """Attributes to hide must vary within the train split, and should be auditable."""
    held_out = plan.sequences.audit_fraction
    counts = dict(zip(record.attributes, plan.value_counts, strict=True))
    for name in {name for combination in record.combinations for name in combination}:
        seen = [value for value, count in zip(record.attributes[name], counts[name], strict=True) if count]
        if len(seen) < 2:
            what = f"only the value {seen[0]!r}" if seen else "no known value"
            raise UserError(
                f"attribute {name!r} has {what} among the {plan.users} users to train on: leave it out of combinations"
            )
        audited = sum(counts[name]) * held_out / (1 - held_out)
        if audited < MIN_AUDIT_USERS:
            logger.warning(
                "attribute %s: about %.0f users of the audit split have a known value; an audit may refuse so few: "
                "leave it out of combinations, or raise sequences.audit_fraction of the backbone",
                name,
                audited,
            )


def _warn_of_floors(record: EliminatorsRecord, figures: Figures) -> None:
    """Say where the accuracy floor limits what is hidden, and where it was never reached."""
    for name in map(combination_name, record.combinations):
        found = figures[name]
        strength, confirmed = found.get("strength", 1.0), found.get("strength_confirmed", 1.0)
        if strength < confirmed:
            logger.warning(
                "combination %s: transport strength limited to %g by the accuracy floor; cross-validation supports %g; "
                "lower optim.min_ndcg_ratio or raise optim.leakage_budget to hide more",
                name,
                strength,
                confirmed,
            )
        if found["step"] and found["ndcg"] >= found["ndcg_floor"]:
            continue
        kept = (
            f"the most accurate weights are kept, of step {found['step']:.0f}" if found["step"] else "it is untrained"
        )
        logger.warning(
            "combination %s: its NDCG@10 was below its floor at every validation, so %s (transport: fitted before "
            "training); lower optim.min_ndcg_ratio, adversary.weight or adversary.generator_lr",
            name,
            kept,
        )


def _jobs_at_once(config: EliminatorsConfig) -> int:
    """Packs trained side by side; more than fit would leave Ray Data no CPU, and hang."""
    check_resources(config.runner)
    fitting = jobs_that_fit(config.runner)
    if config.jobs_at_once is None or config.jobs_at_once <= fitting:
        return config.jobs_at_once or fitting
    message = f"jobs_at_once = {config.jobs_at_once}: the cluster holds {fitting} jobs at once (a CPU stays free)"
    if not joins_cluster():
        raise UserError(f"{message}: lower jobs_at_once or runner.cpus_per_worker")
    logger.warning("%s, unless it can grow: continuing with %d", message, fitting)
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
            if mistake:  # it is in the inputs of all packs
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

    def show(stage: str, done: int, total: int, note: str = "") -> None:
        if progress:
            progress(label, done, total, note)

    arguments, runner = {"record": record.model_dump_json(), "pack": pack}, record.config.runner
    folder, steps = join(record.uri, "packs"), record.steps_per_pack
    fit(make_training, arguments, folder, pack, runner, steps, show if progress else None)
    write_json(join(pack_uri(record, pack), "done.json"), {"combinations": names})


def jobs_that_fit(runner: RunnerConfig) -> int:
    """Jobs that the cluster holds at once, with one CPU free for Ray Data; at least 1."""
    available = cluster_resources()
    fitting = (available.get("CPU", 0) - 1) // (runner.workers * runner.cpus_per_worker)
    if runner.use_gpu:
        fitting = min(fitting, available.get("GPU", 0) // runner.workers)
    return max(1, int(fitting))
