"""Hold the measurements of one run as typed values, and convert them to and from JSON.

Input: measurements of planning, learning, writing and verification.
Output: `RunMetrics.json()`, which `run --json` prints and the provenance file records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

# Why preservation was not measured (`Preservation.unmeasured`).
COPIES = "every tensor is a copy of one of the source's, so no model was run"

APPLIED = "`apply` runs no model; the run that made the operator measured it on its own source"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameter counts. A tied matrix counts once.

    Attributes:
        source: parameters of the source model.
        target: parameters of the target model.
    """

    source: int
    target: int


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Mean losses on the test slice, in nats. None where a loss was not measured.

    Attributes:
        source: the source model.
        initial: the target grown by the initial operator.
        fitted: the target grown by the fitted operator.
        random_target: the target grown by a random operator.
    """

    source: float | None = None
    initial: float | None = None
    fitted: float | None = None
    random_target: float | None = None


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Top-1 accuracies on the test slice, from 0 to 1. None where the task has no accuracy or it was not measured.

    Attributes:
        source: the source model.
        initial: the target grown by the initial operator.
        fitted: the target grown by the fitted operator.
    """

    source: float | None = None
    initial: float | None = None
    fitted: float | None = None


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations.

    Attributes:
        target_step: one training step of the target; None where the batch size is unknown.
        fit: the whole fit of the operator.
        pretrain: the whole training of the source; None where the recipe does not train it.
    """

    target_step: int | None
    fit: int | None
    pretrain: int | None = None


@dataclass(frozen=True, kw_only=True)
class Preservation:
    """The degree to which growth preserves the source's function, as the method claims and as measured in float32 or wider.

    Attributes:
        verdict: "exact", "near" or "lossy", from `planned` and `measured` (`growth.verdict.certified`); None where nothing could be
            measured.
        planned: the verdict that the growth method claims, by its mathematics.
        measured: the verdict of the measured differences alone; None where nothing could be measured.
        unmeasured: why nothing was measured; None where something was.
        dtype: dtype of the arithmetic of the measurement.
        inputs: "data" for held-out data, "random" for random token ids or images.
        reasons: reasons why the plan does not claim more.
        max_logit_difference: largest absolute difference of the compared outputs.
        mean_logit_difference: mean absolute difference of the compared outputs.
        logit_scale: largest absolute output of the source.
        loss_difference: target loss minus source loss, in nats.
        departs_at: first target layer, counted over all depth axes, that does not reproduce its source layer.
        compared: "logits" or "hidden states".
        tokens: tokens compared.
        images: images compared.
        rounding: cost of storing the target in a narrower dtype; None where no tensor is narrower.
        method: "in memory", or "streamed" where the models did not fit: each weight was read or grown when it was used.
    """

    verdict: str | None = None
    planned: str
    measured: str | None = None
    unmeasured: str | None = None
    reasons: list[str]
    max_logit_difference: float | None = None
    mean_logit_difference: float | None = None
    logit_scale: float | None = None
    loss_difference: float | None = None
    departs_at: int | None = None
    compared: str | None = None
    tokens: int = 0
    images: int = 0
    dtype: str | None = None
    inputs: str | None = None
    rounding: Mapping[str, Any] | None = None
    method: str | None = None


@dataclass(frozen=True, kw_only=True)
class FitOutcome:
    """Outcome of the fit of the operator.

    Attributes:
        steps: optimiser steps of the whole fit.
        best_step: step of the operator that was kept; 0 is the initial operator.
        best_validation_loss: its loss on the validation slice, in nats.
        initial_validation_loss: loss of the initial operator there; None where it was not measured.
        source_validation_loss: loss of the source there; None where it does not compare or was not measured.
        seed: seed of the data order.
        precision: "bfloat16" or "float32"; "float64" for a source in float64.
        device: "cpu" or "cuda".
        threads: CPU threads; their number decides the last bits.
    """

    steps: int
    best_step: int
    best_validation_loss: float | None
    seed: int
    precision: str
    device: str
    threads: int
    initial_validation_loss: float | None = None
    source_validation_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class PretrainOutcome:
    """Outcome of the training of the source, for a recipe that trains it.

    Attributes:
        steps: optimiser steps.
        tokens: tokens (for images: patches) trained on.
        last_loss: training loss of the last step, in nats.
        validation_loss: loss on the validation slice, in nats.
    """

    steps: int
    tokens: int
    last_loss: float
    validation_loss: float


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Measurements that exist only after the weights are written and verified.

    Attributes:
        verification: counts and checks of `outputs.verify`.
        files: `carried`, `rewritten` and `left_behind` of `outputs.carried`.
        seconds: wall-clock seconds by stage, of the process that finished the run.
        peak_rss_bytes: peak resident memory of that process.
    """

    verification: Mapping[str, Any]
    files: Mapping[str, Any]
    seconds: Mapping[str, float]
    peak_rss_bytes: int


@dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """All measurements of one run.

    Attributes:
        task: the family's task, such as "causal-lm".
        parameters: parameter counts.
        loss: losses on the test slice.
        accuracy: accuracies on the test slice.
        flops: floating-point operations.
        preservation: None where a stored operator was applied, since `apply` measures nothing.
        fit: None where no operator was fitted.
        pretrain: None where the source was not trained by the recipe.
        completion: None until the weights are written and verified.
    """

    task: str
    parameters: Parameters
    loss: Losses = field(default_factory=Losses)
    accuracy: Accuracies = field(default_factory=Accuracies)
    flops: Flops
    preservation: Preservation | None = None
    fit: FitOutcome | None = None
    pretrain: PretrainOutcome | None = None
    completion: Completion | None = None

    def json(self) -> dict[str, Any]:
        """Return the JSON form. NaN and infinity stay floats; each writer chooses their notation."""
        data: dict[str, Any] = {
            "task": self.task,
            "parameters": asdict(self.parameters),
            "loss": asdict(self.loss),
            "accuracy": asdict(self.accuracy),
            "flops": {
                key: value for key, value in asdict(self.flops).items() if key != "pretrain" or value is not None
            },
            "preservation": asdict(self.preservation) if self.preservation else dict(_UNMEASURED),
            "fit": asdict(self.fit) if self.fit else None,
        }
        if self.pretrain is not None:
            data["pretrain"] = asdict(self.pretrain)
        if self.completion is not None:
            data |= asdict(self.completion)
        return data


_UNMEASURED = {
    "verdict": None,
    "max_logit_difference": None,
    "loss_difference": None,
    "unmeasured": APPLIED,
}


def metrics_from_json(data: Mapping[str, Any]) -> RunMetrics:
    """Return the metrics of a run from the JSON form that `RunMetrics.json` gave before the run was complete."""
    fit, pretrain = data["fit"], data.get("pretrain")
    return RunMetrics(
        task=data["task"],
        parameters=Parameters(**data["parameters"]),
        loss=Losses(**data["loss"]),
        accuracy=Accuracies(**data["accuracy"]),
        flops=Flops(**data["flops"]),
        preservation=Preservation(**data["preservation"]),
        fit=FitOutcome(**fit) if fit else None,
        pretrain=PretrainOutcome(**pretrain) if pretrain else None,
    )


@cache
def _reader() -> Any:
    import pydantic

    return pydantic.TypeAdapter(RunMetrics)


_COMPLETION = ("verification", "files", "seconds", "peak_rss_bytes")


def is_metrics(data: Mapping[str, Any]) -> bool:
    """Return True if plain values have the JSON form that `RunMetrics.json` gives of a finished run: every figure that a report prints."""
    parts = {key: value for key, value in data.items() if key not in _COMPLETION}
    if parts.get("preservation") == _UNMEASURED:
        parts["preservation"] = None
    parts["completion"] = {key: data.get(key) for key in _COMPLETION}
    try:
        found = _reader().validate_json(json.dumps(parts), strict=True)
    except ValueError:  # pydantic's ValidationError is one
        return False
    done, kept = found.completion, found.preservation
    match done:
        case Completion(verification={"tensors": int(), "finite": bool(), "loaded": None | {"class": str()}}):
            listed = is_files(done.files)
        case _:
            return False
    measured = kept is None or kept.verdict is None or (kept.compared is not None and _is_difference(asdict(kept)))
    rounding = kept is None or kept.rounding is None or _is_difference({"compared": "", **kept.rounding}, dtype=True)
    return listed and measured and rounding


def is_files(data: object) -> bool:
    """Return True if plain values have the form of `Completion.files`."""
    match data:
        case {"carried": list(carried), "rewritten": list(rewritten), "left_behind": list(left)}:
            reasons = [item.get(key) if isinstance(item, dict) else None for item in left for key in ("path", "reason")]
            return all(isinstance(name, str) for name in (*carried, *rewritten, *reasons))
    return False


def _is_difference(figures: Mapping[str, Any], *, dtype: bool = False) -> bool:
    match figures:
        case {"max_logit_difference": int() | float(), "loss_difference": None | int() | float()}:
            return not dtype or isinstance(figures.get("dtype"), str)
    return False
