"""Train a model as a recipe says, growing on the way where `growth.schedule` says so: the command `train`.

Input: a recipe with a `train` section.
Output: a verified output directory with the trained model, its log and its optimizer's state. Everything is staged in a directory beside
it; after an interruption the same command resumes, with the same bits.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.tensors import nonfinite_count
from ligo_convert.checkpoints.writer import Writer, rehash
from ligo_convert.conversion.identity import compute_digests
from ligo_convert.conversion.library_check import check_plan
from ligo_convert.conversion.plan import Plan, make_plan, open_planned, plan_carried, stream_width
from ligo_convert.conversion.pretrain_source import draw_source, train_source
from ligo_convert.conversion.resume import finished_statement, reuse_finished
from ligo_convert.conversion.run_facts import run_facts
from ligo_convert.conversion.run_record import ConversionResult, family_source_json, finite, run_key, source_record
from ligo_convert.conversion.source_checks import scan_source
from ligo_convert.conversion.splits import load_splits, tokenizer_directory
from ligo_convert.conversion.step_results import keep_result, same_data, staged_results
from ligo_convert.conversion.train_plan import TrainPlan, make_train_plan, naming_train
from ligo_convert.conversion.write import Clock, now
from ligo_convert.data.token_store import TokenFolder
from ligo_convert.data.tokenizers import known_files
from ligo_convert.environment import choose_device, compute_threads, peak_rss_bytes, versions
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.importing.sandbox import support
from ligo_convert.io.files import remove_any
from ligo_convert.io.staging import WORK, Staging
from ligo_convert.outputs.carried import CarriedFiles, contents
from ligo_convert.outputs.layout import FIT_PLOT, TRAIN_LOG, TRAINED_SOURCE, TRAINING_STATE
from ligo_convert.outputs.loading import check_loads
from ligo_convert.outputs.metrics import is_files
from ligo_convert.outputs.optimizer_state import TrainingFiles, find_optimizer, source_moments
from ligo_convert.outputs.provenance import Record
from ligo_convert.outputs.side_files import write_model_files, write_record
from ligo_convert.outputs.train_plot import train_picture
from ligo_convert.outputs.verify import check_digests, check_weights
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import Recipe
from ligo_convert.training.state import StagedState, optimizer_state

if TYPE_CHECKING:
    from ligo_convert.data.examples import DataSplits
    from ligo_convert.training.loop import StateStore
    from ligo_convert.training.optimizers import Moments
    from ligo_convert.training.processes import Processes
    from ligo_convert.training.run_trainer import RunState, TrainSetup


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A planned training, with its source open.

    Attributes:
        source: the source; None where the recipe trains or draws it.
        digests: SHA-256 of the source's files, by name, and of the optimizer's state beside it.
        optimizer: the optimizer's state beside the source; None where there is none.
        key: identifies the training and what it reads.
        recipe_digest: SHA-256 of the recipe and the contents it names.
        facts: what tells this training from another, for messages.
    """

    made: TrainPlan
    source: CheckpointReader | None
    digests: Mapping[str, str]
    key: str
    recipe_digest: str
    facts: Mapping[str, str]
    optimizer: TrainingFiles | None = None


def train_model(
    recipe: Recipe, *, device: str = "auto", progress: Progress | None = None, processes: Processes | None = None
) -> ConversionResult:
    """Train the model of a recipe. After an interruption, the same call resumes where the training stopped.

    Args:
        processes: the processes that share the training, of which this one leads; None for one.

    Raises:
        LigoError: its class names the cause; the output directory is then absent or unchanged.
    """
    written, recipe = recipe, recipe.for_training()
    progress, clock, out = progress or Progress(), Clock(), Path(recipe.output.dir)
    with naming_train(written), contextlib.ExitStack() as stack:
        with clock.running("plan"):
            finished = finished_statement(out)
            opened = _open(stack, recipe, progress, fresh=finished is None)
            _check_processes(opened.made, processes)
        made, plan = opened.made, opened.made.plan
        if finished is not None:
            return reuse_finished(
                out,
                finished,
                opened.key,
                facts=opened.facts,
                family=plan.family.name,
                label=plan.label,
                progress=progress,
                complete=_is_trained,
            )
        for warning in plan.warnings:
            progress.warn(warning)
        staging = stack.enter_context(Staging.open(out, key=opened.key, facts=opened.facts, progress=progress))
        if staging.resumed:
            progress.say("resuming from the staged files of an earlier training")
        with clock.running("pretrain"):
            source, digests, made = _source(stack, opened, staging, device, progress)
        trainer = _Trainer(made, source, opened.optimizer, staging, choose_device(device), progress, processes)
        with clock.running("train"), compute_threads(made.plan.threads):
            trained = trainer.train()
        opened = replace(opened, source=source, digests=digests, made=made)
        metrics = _write(opened, source, trained, staging, clock, progress)
        staging.commit()
    return ConversionResult(out=out, family=plan.family.name, label=plan.label, metrics=metrics, changed=True)


def train_alone_or_leading(recipe: Recipe, *, device: str, progress: Progress) -> ConversionResult:
    """Train as `train_model` does; where torchrun has started this process, lead the others."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return train_model(recipe, device=device, progress=progress)
    from ligo_convert.training.processes import joined

    with joined(choose_device(device)) as processes:
        outcome = train_model(recipe, device=device, progress=progress, processes=processes)
        if processes is not None:
            processes.send(None)
    return outcome


def _open(stack: contextlib.ExitStack, recipe: Recipe, progress: Progress, *, fresh: bool) -> _Opened:
    """Open the recipe's source until `stack` closes, plan the training, and check and digest the source."""
    source = open_planned(recipe, weights=True)
    if source is not None:
        stack.enter_context(source)
    plan = make_plan(recipe, source, check_disk=fresh)
    made = make_train_plan(plan)
    if fresh:
        from ligo_convert.training.optimizers import require_optimizer

        require_optimizer(made.run.optimizer.name, where=recipe.where("train", "optimizer"))
        check_plan(plan, source)
    digests: dict[str, str] = {}
    optimizer = None
    if source is not None:
        digests = scan_source(source, plan.inventory, progress, allow_nonfinite=recipe.source.allow_nonfinite)
        optimizer = find_optimizer(source.root, source.label)
        digests |= {} if optimizer is None else optimizer.sha256
    identity = compute_digests(plan, source, digests, progress)
    return _Opened(
        made=made,
        source=source,
        digests=digests,
        key=run_key(identity.whole),
        recipe_digest=identity.whole,
        facts=run_facts(filled_training(made), digests, plan.family.name, others=identity.parts),
        optimizer=optimizer,
    )


def _check_processes(made: TrainPlan, processes: Processes | None) -> None:
    """Require a batch that all processes can share equally. Raises RecipeError."""
    if processes is not None and made.run.batch_size % processes.size:
        raise RecipeError(
            "train.batch_size: the processes cannot share a batch equally",
            where=made.plan.recipe.where("train", "batch_size"),
            expected=f"a multiple of {processes.size}, the number of processes",
            found=made.run.batch_size,
        )


def filled_training(made: TrainPlan) -> dict[str, Any]:
    """Return the recipe's public form, with the plan's choices where the recipe leaves them open."""
    recipe: dict[str, Any] = made.plan.recipe.public()
    recipe["growth"]["operator"]["keying"] = made.plan.start.growth.keying
    recipe["train"] |= {
        "micro_batch_size": made.plan.micro_batch,
        "threads": made.plan.threads,
        "warmup_steps": made.run.warmup,
    }
    return recipe


def _is_trained(metrics: Mapping[str, Any]) -> bool:
    """Return True if plain values have every figure of a finished training that a report prints."""
    match metrics:
        case {"steps": int(), "tokens": int(), "flops": float() | int(), "loss": dict(), "growths": list(), **rest}:
            return (
                isinstance(rest.get("seconds"), dict)
                and isinstance(rest.get("files"), dict)
                and is_files(rest["files"])
            )
    return False


def _source(
    stack: contextlib.ExitStack, opened: _Opened, staging: Staging, device: str, progress: Progress
) -> tuple[CheckpointReader, Mapping[str, str], TrainPlan]:
    """Return the open source, trained or drawn first where the recipe says so, its digests, and the plan made from its headers."""
    made = opened.made
    if opened.source is not None:
        return opened.source, opened.digests, made
    if made.draws:
        source, digests, plan = draw_source(stack, made.plan, staging, progress, seed=made.settings.seed)
    else:
        source, digests, plan = train_source(stack, made.plan, staging, device, progress)
    return source, digests, make_train_plan(plan)


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """A trained model.

    Attributes:
        state: the model after the last step.
        log: lines of the log.
        growths: every growth, with the validation losses before and after it.
        loss: `validation` and `test` loss of the model.
        data: what the record states about the data.
        precision: `bfloat16` or `float32`.
        processes: number of processes.
    """

    state: RunState
    log: list[dict[str, Any]]
    growths: list[dict[str, Any]]
    loss: dict[str, float]
    data: Mapping[str, Any]
    precision: str
    processes: int


class _Trainer:
    """Trains a run stage by stage, in a staging directory that keeps the state at the end of the last finished stage."""

    def __init__(
        self,
        made: TrainPlan,
        source: CheckpointReader,
        optimizer: TrainingFiles | None,
        staging: Staging,
        device: str,
        progress: Progress,
        processes: Processes | None,
    ) -> None:
        self.optimizer, self.processes = optimizer, processes
        self.made, self.source, self.staging, self.device, self.progress = made, source, staging, device, progress
        self.plan, self.run, self.family = made.plan, made.run, made.plan.family

    def train(self) -> _Trained:
        splits, data = self._load_data()
        self._tell_of_other_processes()
        setup = self._setup(splits)
        done = staged_results(self.staging).get("trained") or {"stages": 0, "log": [], "growths": []}
        state = self._saved(done["stages"]) if done["stages"] else None
        if state is None:
            done, state = {"stages": 0, "log": [], "growths": []}, self._start()
        with self.progress.task("training", self.run.steps, unit="steps") as task:
            for number in range(done["stages"], len(self.run.stages)):
                done, state = self._stage(number, setup, state, done, task)
        loss = {
            "validation": self._loss(state, setup, splits.validation),
            "test": self._loss(state, setup, splits.test),
        }
        return _Trained(
            state=state,
            log=done["log"],
            growths=done["growths"],
            loss=loss,
            data=data,
            precision="bfloat16" if setup.autocast else "float32",
            processes=self._count,
        )

    @property
    def _count(self) -> int:
        return 1 if self.processes is None else self.processes.size

    def _tell_of_other_processes(self) -> None:
        """Warn where the training has begun in another number of processes: it ends with other last digits."""
        before = staged_results(self.staging).get("processes", self._count)
        if before != self._count:
            self.progress.warn(
                f"this training has begun in {before} process(es) and goes on in {self._count}: the weights differ in their last digits"
                " from those of a training in one number of processes"
            )
        keep_result(self.staging, "processes", self._count)

    def _load_data(self) -> tuple[DataSplits, dict[str, Any]]:
        """Return the data, with the tokens of a text on the disk, and what the record states about it."""
        plan, fit = self.plan, self.plan.required_fit
        tokenizer = tokenizer_directory(plan, self.source) if self.family.reads == "text" else None
        # The staging directory belongs to one recipe and source, so its tokens do.
        folder = TokenFolder(path=self.staging.path / WORK / "tokens", owner="train", warn=self.progress.warn)
        splits = load_splits(plan, tokenizer, progress=self.progress, token_folder=folder)
        same_data(self.staging, splits.digest)
        assert fit.data is not None, "a plan that is carried out has its data"
        files = {path.name: rehash(path) for path in known_files(tokenizer)} if tokenizer is not None else {}
        return splits, {
            "digest": splits.digest,
            "kind": fit.data.kind,
            splits.unit: dict(splits.sizes),
            "tokenizer": files,
        }

    def _setup(self, splits: DataSplits) -> TrainSetup:
        from ligo_convert.training.fit import autocast_pays
        from ligo_convert.training.run_trainer import TrainSetup

        plan, settings = self.plan, self.made.settings
        width = stream_width(plan, plan.start.target)
        return TrainSetup(
            family=self.family,
            slices=splits,
            micro_batch_size=min(plan.micro_batch, settings.batch_size),
            sequence_length=plan.required_fit.positions,
            evaluate_every=settings.evaluate_every,
            examples=splits.validation,
            device=self.device,
            autocast=autocast_pays(self.device, settings.precision, width=width),
            compiled=settings.compile,
            processes=self.processes,
        )

    def _start(self) -> RunState:
        """Return the model that the training starts from, with the optimizer's state beside it, if there is one."""
        from ligo_convert.training.run_trainer import source_state

        start, plan = self.run.stages[0], self.plan
        config = plan.start.source
        read = self.source.read
        state = source_state(read, self.family, plan.inventory, config, start.config, device=self.device)
        return state if self.optimizer is None else replace(state, moments=self._moments(self.optimizer, config))

    def _moments(self, files: TrainingFiles, config: Mapping[str, Any]) -> Moments:
        """Return the state beside the source with which the optimizer goes on. That of another program may not be understood."""
        from ligo_convert.training.optimizers import matching_moments

        own = files.optimizer == TRAINING_STATE
        try:
            no_sandbox = None if own else support()
            if no_sandbox is not None:
                raise SourceError(no_sandbox, where=files.optimizer)
            found = source_moments(files, self.plan.inventory)
        except SourceError as error:
            if own:
                raise
            self.progress.warn(f"{files.optimizer} is not taken along, and the optimizer starts afresh: {error.what}")
            return {}
        moments = matching_moments(found, self.family, config, self.run.optimizer)
        self.progress.say(f"the optimizer's state beside the source is taken along: {len(moments)} tensors")
        return moments

    def _stage(
        self, number: int, setup: TrainSetup, before: RunState, done: dict[str, Any], task: Any
    ) -> tuple[dict[str, Any], RunState]:
        """Train one stage from the state before it. Return what is done, and the state at its end."""
        from ligo_convert.training.run_trainer import begin_stage, run_segment

        stage, span = self.run.stages[number], self.run.spans[number]
        state = begin_stage(self.family, before, stage, device=self.device)
        store = StagedState(self.staging, f"train-steps-{number}")

        def on_step(step: int, line: Mapping[str, Any]) -> None:
            task.reach(step)
            self.progress.measure("train", line)
            task.note(f"loss {line['loss']:.3f}")

        kept: StateStore = store
        if self.processes is not None:
            setup, kept = self._shared(self.processes, setup, state, span, store)
        segment = run_segment(
            setup, self.run, state, span, store=kept, save_every=self.made.settings.save_every, on_step=on_step
        )
        log, growths = [*done["log"], *segment.log], done["growths"]
        if stage.growth is not None:
            planned = next(growth for growth in self.made.growths() if growth["step"] == stage.begin)
            ended = done["log"][-1]["validation_loss"] if number else self._loss(before, setup, setup.examples)
            losses = {"loss_before": ended, "loss_after": segment.log[0]["validation_loss"]}
            growths = [*growths, {**planned, **losses}]
        end = StagedState(self.staging, f"train-stage-{number + 1}")
        end.save(*segment.end.arrays())
        done = {"stages": number + 1, "log": log, "growths": growths}
        keep_result(self.staging, "trained", done, files=[end.name])
        store.drop()
        if number:
            StagedState(self.staging, f"train-stage-{number}").drop()
        return done, segment.end

    def _shared(
        self, processes: Processes, setup: TrainSetup, state: RunState, span: range, store: StagedState
    ) -> tuple[TrainSetup, StateStore]:
        """Give a segment to the other processes. Return setup and storage with which this one leads them."""
        from ligo_convert.training.follower import Work
        from ligo_convert.training.processes import SentBatches, SentStore

        plain = ("micro_batch_size", "sequence_length", "evaluate_every", "device", "autocast", "compiled")
        work = Work(
            family=self.family.name,
            architecture=self.family.architecture,
            run=self.run,
            state=state.arrays(),
            steps=span,
            settings={name: getattr(setup, name) for name in plain},
            threads=self.plan.threads,
        )
        processes.send(work)
        shared = replace(setup, slices=SentBatches(batches=setup.slices, processes=processes))
        return shared, SentStore(store=store, processes=processes)

    def _saved(self, stages: int) -> RunState | None:
        """Return the state at the end of a finished stage."""
        from ligo_convert.training.run_trainer import RunState

        stored = StagedState(self.staging, f"train-stage-{stages}").load()
        return None if stored is None else RunState.read(*stored, device=self.device)

    def _loss(self, state: RunState, setup: TrainSetup, examples: Any) -> float:
        import torch

        from ligo_convert.training.functional_model import LibraryModel, mean_loss

        model = LibraryModel(self.family, state.config, device=self.device)
        tensors = {name: state.tensors[name] for name in self._names(state)}
        found = mean_loss(
            model.loss,
            tensors,
            examples,
            batch_size=setup.micro_batch_size,
            device=self.device,
            dtype=torch.float32,
            autocast=setup.autocast,
        )
        return round(found, 6)

    def _names(self, state: RunState) -> list[str]:
        rows = self.family.rows_for(state.config)
        return [row.name(layer) for row in rows for layer in self.family.layers(row, state.config)]


def _write(
    opened: _Opened,
    source: CheckpointReader,
    trained: _Trained,
    staging: Staging,
    clock: Clock,
    progress: Progress,
) -> dict[str, Any]:
    """Write and verify the output in the staging directory. Return its figures."""
    made, plan = opened.made, opened.made.plan
    carried = plan_carried(plan.start, source)
    with clock.running("write"):
        weights = _write_weights(plan, trained.state, staging, progress)
        write_model_files(plan.family, trained.state.config, plan.specs, source, staging)
        _write_carried(plan, carried, source, staging)
        staging.write_bytes(TRAIN_LOG, "".join(json.dumps(finite(line)) + "\n" for line in trained.log).encode())
        staging.write_bytes(TRAINING_STATE, optimizer_state(trained.state.moments))
        staging.write_bytes(FIT_PLOT, _picture(plan, trained))
        source.recheck()
        if made.draws:
            # The weights are drawn again from the seed.
            for name in [name for name in staging.files() if name.startswith(f"{TRAINED_SOURCE}/")]:
                staging.remove(name)
            remove_any(staging.path / TRAINED_SOURCE)
    with clock.running("verify"):
        check_digests(staging.path, weights)
        specs = {spec.name: spec for spec in plan.specs}
        checks = {
            "digests": len(weights),
            **check_weights(staging.path, specs, allow_nonfinite=False, progress=progress, values=False),
            "loaded": check_loads(staging.path, plan.family),
        }
    metrics = _metrics(made, trained) | {
        "verification": checks,
        "files": carried.json(),
        "seconds": clock.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    record = _record(opened, source, trained, metrics, clock.started)
    write_record(record, record.recipe, weights, staging)
    return metrics


def _write_weights(plan: Plan, state: RunState, staging: Staging, progress: Progress) -> dict[str, str]:
    """Write the tensors that are not staged yet. Return SHA-256 of the weight files by name."""
    from ligo_convert.checkpoints.torch_io import TORCH_DTYPES, tensor_to_bytes

    written = {plan.family.written(name): tensor for name, tensor in state.tensors.items()}
    with (
        progress.task("writing", plan.shards.nbytes, unit="bytes") as task,
        Writer(staging, plan.shards, on_bytes=task.advance) as writer,
    ):
        for spec in list(writer.pending()):
            data = tensor_to_bytes(written[spec.name].to(TORCH_DTYPES[spec.dtype]), spec)
            bad = nonfinite_count(data, spec.dtype)
            if bad:
                raise RecipeError(
                    f"the training diverged: {bad} of {spec.elements} values of {spec.name} are NaN or infinite",
                    where=plan.recipe.where("train"),
                    hint="lower train.learning_rate, or give more train.warmup_steps",
                )
            writer.put(spec.name, data)
        return writer.close()


def _write_carried(plan: Plan, carried: CarriedFiles, source: CheckpointReader, staging: Staging) -> None:
    for name, data in contents(carried, source, plan.family, initial_operator(plan.start)):
        staging.write_bytes(name, data)


def _picture(plan: Plan, trained: _Trained) -> bytes:
    from ligo_convert.outputs.card import LOSSES

    sizes = ", ".join(f"{count:,}" for count in dict.fromkeys(plan.parameters.values()))
    title = f"{plan.family.model_type}, {sizes} parameters"
    return train_picture(trained.log, growths=trained.growths, title=title, unit=LOSSES[plan.family.task][1])


def _metrics(made: TrainPlan, trained: _Trained) -> dict[str, Any]:
    steps = [line for line in trained.log if "loss" in line]
    loss = {"first": steps[0]["loss"], "last": steps[-1]["loss"], **trained.loss}
    return {
        "task": made.plan.family.task,
        "start": "drawn weights" if made.draws else "source",
        "parameters": made.parameters,
        "steps": made.run.steps,
        "tokens": made.tokens,
        "flops": trained.state.flops,
        "loss": loss,
        "growths": trained.growths,
        "precision": trained.precision,
        "processes": trained.processes,
    }


def _record(
    opened: _Opened,
    source: CheckpointReader,
    trained: _Trained,
    metrics: Mapping[str, Any],
    started: str,
) -> Record:
    made, plan = opened.made, opened.made.plan
    return Record(
        kind="training",
        family=plan.family.name,
        family_source=family_source_json(plan.family.name),
        recipe=filled_training(made),
        recipe_digest=opened.recipe_digest,
        key=opened.key,
        source=source_record(source, opened.digests, pretrained=plan.pretrain is not None),
        data=trained.data,
        operator={"head": plan.family.architecture},
        source_config=plan.start.source,
        target_config=trained.state.config,
        metrics=metrics,
        versions=versions(),
        drawn=[],
        nonfinite_allowed=False,
        started=started,
        finished=now(),
    )
