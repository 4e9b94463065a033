"""Hold source and target models, in memory or streamed, to measure a growth operator and to fit it.

Input: a plan, the source's weights, an initial operator, a device.
Output: losses, accuracies, the preservation figures, a fitted operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch

from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.checkpoints.torch_io import TORCH_DTYPES
from ligo_convert.conversion.fit_plan import FitPlan
from ligo_convert.conversion.plan import Plan, stream_width
from ligo_convert.data.examples import ArrayExamples, DataSplits, Examples
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.stream import compute_dtype
from ligo_convert.outputs.metrics import FitOutcome
from ligo_convert.progress import Progress
from ligo_convert.training.fit import (
    FitSettings,
    GrownTarget,
    autocast_pays,
    fetch_from,
    fit,
    named_source,
    stacked_source,
)
from ligo_convert.training.functional_model import LibraryModel, Objective, mean_loss
from ligo_convert.training.loop import StateStore, TrainResult
from ligo_convert.training.objectives import objective_of
from ligo_convert.training.preservation import MeasuredModel, certificate, in_float64, judged
from ligo_convert.training.streamed import StreamedTensor, loaded, streamed_source, streamed_target
from ligo_convert.training.tasks import random_batch

RANDOM_EXAMPLES = 4


class ModelPair:
    """Source and target of one plan, on one device. Where the plan streams, weights are read and grown as the models use them.

    Args:
        on_read: called with the number of bytes after every read of a source tensor.

    Attributes:
        source: the source model with its weights.
        target: the target's model without weights: `grow` makes them.
    """

    def __init__(
        self,
        plan: Plan,
        checkpoint: CheckpointReader,
        initial: Operator,
        *,
        device: str,
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        torch.manual_seed(0)  # nothing here draws from torch; a library that does would still be reproducible
        self._plan, self._initial, self._device = plan, initial, device
        self._dtype = TORCH_DTYPES[compute_dtype(plan.inventory)]
        self._rows = plan.family.rows_for(plan.start.target)

        def read(name: str) -> memoryview:
            data = checkpoint.read(name)
            if on_read is not None:
                on_read(len(data))
            return data

        self._read = read
        self._stacked: dict[str, torch.Tensor] = {}
        self.source = MeasuredModel(
            library=LibraryModel(plan.inventory.family, plan.start.source, device=device),
            parameters=self._source_parameters(),
        )
        try:
            self.target = LibraryModel(plan.family, plan.start.target, device=device)
        except SourceError as error:
            # The library accepted the source's config, so it refuses what the recipe changes.
            raise RecipeError(error.what, where=plan.recipe.where("target")) from None
        self.target.check_table(self._rows)

    def _source_parameters(self) -> Mapping[str, torch.Tensor]:
        plan = self._plan
        if plan.fit is None:
            return self._held(streamed_source(self._read, plan.inventory, device=self._device))
        # A fit mixes all layers of a row at every step.
        self._stacked = stacked_source(
            self._read, plan.family, plan.inventory, self._rows, device=self._device, dtype=self._dtype
        )
        return named_source(plan.inventory, self._stacked)

    def _held(self, parameters: Mapping[str, StreamedTensor]) -> Mapping[str, torch.Tensor]:
        return parameters if self._plan.measuring == "streamed" else loaded(parameters)

    @cached_property
    def objective(self) -> Objective:
        """The loss that the operator is fitted with."""
        return objective_of(self.target, self.source, self._initial, dtype=self._dtype)

    def grow(self, operator: Operator) -> MeasuredModel:
        """Return the target with the weights that `operator` grows."""
        plan = self._plan
        if plan.fit is None:
            grown = streamed_target(self._read, plan.family, plan.inventory, operator, device=self._device)
            return MeasuredModel(library=self.target, parameters=self._held(grown))
        grower = Grower(operator, plan.family, device=self._device, dtype=self._dtype, fetch=fetch_from(self._stacked))
        return MeasuredModel(library=self.target, parameters=GrownTarget(grower, self._rows, self._stacked).tensors())

    def loss(self, model: MeasuredModel, examples: Examples) -> float:
        """Return the mean fitting loss of a grown target, in nats."""
        return self._mean(self.objective, model, examples)

    def source_loss(self, examples: Examples) -> float | None:
        """Return the source's mean loss, in nats.

        A source without a head agrees with itself: 0. None where the target has a new head, so that their losses do not compare.
        """
        if self._plan.start.drawn_rows:
            return None
        if self.source.library.task.loss is None:
            return 0.0
        return self._mean(self.source.library.loss, self.source, examples)

    def accuracy(self, model: MeasuredModel, examples: Examples) -> float | None:
        """Return the top-1 accuracy; None where the task has none, or for a source with another head than the target."""
        measure = model.library.task.accuracy
        if measure is None or (model is self.source and self._plan.start.drawn_rows):
            return None

        def share(parameters: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return measure(model.library(parameters, batch), batch)

        return self._mean(share, model, examples)

    def preservation(self, grown: MeasuredModel, examples: Examples) -> dict[str, Any]:
        """Compare the initially grown target with its source: the measured fields of `outputs.metrics.Preservation`."""
        plan = self._plan
        depths = {axis: depth.source for axis, depth in plan.start.depths.items()}
        written = {spec.name: TORCH_DTYPES[spec.dtype] for spec in plan.specs}
        measured = certificate(
            self.source,
            grown,
            self._initial,
            depths,
            examples,
            batch_size=plan.micro_batch,
            dtype=self._dtype,
            stored={name: written[plan.family.written(name)] for name in grown.parameters},
        )

        def again() -> dict[str, Any]:
            models = (self.source.library, self.target)
            return in_float64(*models, plan.start, plan.inventory, self._read, examples, batch_size=plan.micro_batch)

        found = judged(measured, plan.start.verdict, dtype=self._dtype, data=plan.fit is not None, again=again)
        return {**found, "method": plan.measuring}

    def random_examples(self) -> Examples:
        """Return seeded random inputs that fit the source, for measuring without data."""
        batch = random_batch(self._plan.inventory.family, self._plan.start.source, count=RANDOM_EXAMPLES)
        return ArrayExamples(arrays=batch)

    def fit(
        self, planned: FitPlan, splits: DataSplits, *, store: StateStore, progress: Progress
    ) -> tuple[Operator, TrainResult, FitOutcome]:
        """Fit the operator. Return the best operator on the validation slice, how training went, and its summary."""
        settings = self._fit_settings(planned)
        source_loss = self.source_loss(splits.validation)
        with progress.task("fitting the operator", settings.steps, unit="steps") as task:

            def on_step(step: int, line: Mapping[str, Any]) -> None:
                task.reach(step)
                progress.measure("fit", line)
                validation = f", validation {line['validation_loss']:.3f}" if "validation_loss" in line else ""
                task.note(f"loss {line['loss']:.3f}{validation}")

            fitted, result = fit(
                self._initial,
                self._plan.family,
                self._plan.inventory,
                self._stacked,
                splits,
                settings,
                objective=self.objective,
                device=self._device,
                store=store,
                on_step=on_step,
            )
        outcome = FitOutcome(
            steps=settings.steps,
            best_step=result.best_step,
            best_validation_loss=result.best_loss,
            initial_validation_loss=result.log[0].get("initial_validation_loss") if result.log else None,
            source_validation_loss=source_loss,
            seed=settings.seed,
            precision="bfloat16" if settings.autocast else str(self._dtype).removeprefix("torch."),
            device=self._device,
            threads=self._plan.threads,
        )
        # `fit` returns dense maps. Where no step beat the initial operator, keep its structured form.
        return (fitted if result.best_step else self._initial), result, outcome

    def _fit_settings(self, planned: FitPlan) -> FitSettings:
        config, plan = planned.settings, self._plan
        return FitSettings(
            steps=config.steps,
            batch_size=config.batch_size,
            micro_batch_size=plan.micro_batch,
            tokens_a_step=planned.tokens_per_step,
            width_rate=config.learning_rate.width,
            depth_rate=config.learning_rate.depth,
            weight_decay=config.weight_decay,
            warmup_steps=planned.warmup_steps,
            seed=config.seed,
            evaluate_every=config.evaluate_every,
            autocast=autocast_pays(self._device, config.precision, width=stream_width(plan, plan.start.target)),
        )

    def _mean(self, objective: Objective, model: MeasuredModel, examples: Examples) -> float:
        return mean_loss(
            objective,
            model.parameters,
            examples,
            batch_size=self._plan.micro_batch,
            device=self._device,
            dtype=self._dtype,
        )
