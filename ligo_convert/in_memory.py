"""Grow a model in memory: a model of transformers or timm in, a larger model of the same class out.

Input: a model, the config keys to change, and, to fit the operator, data.
Output: the grown model, with a `GrowthReport` as its attribute `ligo`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.checkpoints.torch_io import TORCH_DTYPES, tensor_from_bytes, tensor_to_bytes
from ligo_convert.cli.progress_bars import shown_progress
from ligo_convert.conversion.plan import DEFAULT_KEYING
from ligo_convert.data.batches import BatchFormat, read_batches
from ligo_convert.data.examples import ArrayExamples, Batch, Examples
from ligo_convert.environment import compute_threads
from ligo_convert.errors import RecipeError, SourceError, close_matches
from ligo_convert.families.configs import flat_config, image_sides, with_tokens, written_config
from ligo_convert.families.flops import step_flops
from ligo_convert.families.inventory import Inventory, claim_tensors
from ligo_convert.families.parameters import model_parameters
from ligo_convert.families.registry import FAMILIES, find_family
from ligo_convert.families.schema import CAUSAL, Family
from ligo_convert.growth.apply import Grower
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.growth_plan import GrowthPlan, GrowthSettings, plan_growth
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.new_parameters import added_parts, new_parameters
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.stream import compute_dtype, target_specs
from ligo_convert.growth.stream import grow as grow_stream
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.outputs.html import pairs_html
from ligo_convert.outputs.metrics import COPIES, Preservation
from ligo_convert.progress import Progress
from ligo_convert.training.fit import FitSettings, GrownTarget, fetch_from, fit, named_source, stacked_source
from ligo_convert.training.functional_model import LibraryModel, mean_loss, table_parameters, untie
from ligo_convert.training.given_model import check_given, copy_requires_grad, drop_rates, grown_config
from ligo_convert.training.model_tensors import parameters_of, tensors_of
from ligo_convert.training.objectives import objective_of
from ligo_convert.training.preservation import MeasuredModel, certificate, in_float64, judged
from ligo_convert.training.schedules import default_warmup
from ligo_convert.training.tasks import random_batch
from ligo_convert.training.threads import default_threads
from ligo_convert.units import amount

Model = TypeVar("Model", bound=torch.nn.Module)

WHERE = "changes"

# Learning rates of the fit: of width maps, and of depth weights.
LEARNING_RATES = {"width": 3e-5, "depth": 1e-2}

# Of the batches, one in twelve chooses the operator, and as many report its loss.
_HELD_OUT = 12

_RANDOM_EXAMPLES = 4

_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class GrowthReport:
    """Figures of one growth. `grow` sets it as the attribute `ligo` of the model that it returns.

    Attributes:
        family: name of the family.
        parameters: `source` and `target`: number of parameters.
        preservation: `verdict` (`exact`, `near` or `lossy`), `max_logit_difference`, `loss_difference` and more, for the
            operator before the fit, as `ligo-convert run --json` prints them. Where nothing could be measured, the verdict is
            None and `unmeasured` states the reason, such as whole tensors that were only copied without data.
        loss: mean loss of the `source`, of the target with the `initial` operator, and with the `fitted` one, in nats, on
            batches that neither trained nor chose the operator. None without data.
        fit: `steps`, `best_step` (0: the initial operator stayed the best) and `best_validation_loss`; None without data.
        log: one mapping a step of the fit.
        operator: the operator that was applied.
        new_parameters: which parameters growth added, as `ligo/new_parameters.json` has it.
    """

    family: str
    parameters: Mapping[str, int]
    preservation: Mapping[str, Any]
    loss: Mapping[str, float | None]
    fit: Mapping[str, Any] | None
    log: tuple[Mapping[str, Any], ...]
    operator: Operator
    new_parameters: Mapping[str, Any]

    def _repr_html_(self) -> str:
        """Show the figures in a notebook."""
        fit = self.fit
        return pairs_html(
            f"Grown {self.family}",
            {
                "parameters": f"{amount(self.parameters['source'])} to {amount(self.parameters['target'])}",
                "preservation": self.preservation["verdict"] or f"not measured: {self.preservation['unmeasured']}",
                "largest difference of a logit": _figure(self.preservation["max_logit_difference"]),
                **{f"loss, {name}": _figure(value) for name, value in self.loss.items()},
                "fit": None if fit is None else f"best step {fit['best_step']} of {fit['steps']}",
            },
        )

    def new_parameter_masks(self) -> dict[str, torch.Tensor]:
        """Return for every parameter name of the grown model a boolean tensor of its shape: True where an entry is new."""
        family = _family_of(self.operator)
        masks = {name: torch.from_numpy(part.mask()) for name, part in added_parts(family, self.operator).items()}
        return parameters_of(model_parameters(family, self.operator.target), masks)


def grow(
    model: Model,
    changes: Mapping[str, object],
    *,
    data: object = None,
    tokenizer: Any = None,
    sequence_length: int | None = None,
    batch_size: int = 8,
    width: str = "lemon",
    depth: str = "identity",
    steps: int = 100,
    learning_rate: Mapping[str, float] | None = None,
    keying: str = DEFAULT_KEYING,
    tie: str | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> Model:
    """Grow a model of transformers or timm into a larger one of the same class.

    Args:
        model: of a supported family, with its head. It is not changed.
        changes: config keys over the model's own, such as `{"n_layer": 24, "n_embd": 1024, "n_head": 16}`.
        data: what the operator is fitted on; None: no fit. An iterable of batches (token ids `[batch, sequence]`, mappings
            with `input_ids` and, for a masked language model, `labels`; pairs of images and labels for a vision transformer), a torch
            `DataLoader`, a `datasets` dataset, or texts with `tokenizer`. Each batch is one step; batches are used again
            in turn where there are fewer than `steps`. One batch in twelve chooses the best operator, and as many report
            its loss. Three batches are the minimum.
        tokenizer: the model's tokenizer, for texts.
        sequence_length: tokens in a sequence cut from texts. Default: 128, or what the model can read.
        batch_size: examples in a batch made from texts or single examples.
        width: width method; `ligo-convert methods` lists them.
        depth: depth method.
        steps: steps of the fit.
        learning_rate: `width` (default 3e-5) and `depth` (default 1e-2) of the fit.
        keying: how layers share width maps: `shared`, `source` or `target`.
        tie: `paper` ties the maps as the LiGO paper does; None: each map is learned on its own.
        seed: of everything random.
        progress: True shows progress on stderr, None does so on a terminal, False never.

    Returns:
        A model of the same class, dtype and device, in evaluation mode. It keeps the attention implementation, the drop rates and
        which parameters are frozen. Its attribute `ligo` is a `GrowthReport`.

    Raises:
        RecipeError: the target cannot be grown into, a method cannot keep its promise, or the data does not fit the model.
        SourceError: the model is not supported, or computes something else than its config says.
    """
    settings = _settings(width=width, depth=depth, keying=keying, tie=tie, seed=seed)
    rates = _rates(learning_rate)
    for name, value in (("steps", steps), ("batch_size", batch_size), ("sequence_length", sequence_length)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise RecipeError(f"{name} is not a positive whole number", where=name, found=repr(value))
    source = _SourceModel.of(model)
    if not isinstance(changes, Mapping):
        raise RecipeError("changes is not a mapping of config keys", where=WHERE, found=type(changes).__name__)
    family, config = source.inventory.family, source.config
    changes = with_tokens(family, config, changes)
    target = family.resize(config, changes, where=WHERE)
    made = family.for_config(target)
    plan = plan_growth(made, settings, config, target, asked=changes, where=WHERE, source_family=family)
    splits = None
    if data is not None:
        format_ = _batch_format(family, config, sequence_length=sequence_length, batch_size=batch_size, seed=seed)
        splits = _split(read_batches(data, format_, tokenizer=tokenizer, limit=steps + 2 * -(-steps // _HELD_OUT)))
    # The caller may have turned gradients off, or on a narrower dtype.
    with _shown(progress) as shown, _own_modes(source.device), compute_threads(_threads(family, plan, splits)):
        fitted = _fitted(model, source, plan, splits, steps=steps, rates=rates, seed=seed, progress=shown)
        with shown.task("growing the weights"):
            grown = _grown_model(model, source, plan, fitted.operator)
    grown.ligo = GrowthReport(  # type: ignore[assignment]  # any attribute may hang on a module
        family=family.name,
        parameters={
            "source": family.parameters(source.inventory.rows, config),
            "target": family.parameters(family.rows_for(plan.target), plan.target),
        },
        preservation=fitted.preservation,
        loss=fitted.loss,
        fit=fitted.fit,
        log=tuple(fitted.log),
        operator=fitted.operator,
        new_parameters=new_parameters(_family_of(fitted.operator), fitted.operator),
    )
    return grown


# Arguments.


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _settings(*, width: str, depth: str, keying: str, tie: str | None, seed: int) -> GrowthSettings:
    for name, value, known in (
        ("width", width, list(WIDTHS)),
        ("depth", depth, list(DEPTHS)),
        ("keying", keying, ["shared", "source", "target"]),
        ("tie", tie, [None, "paper"]),
    ):
        if value not in known:
            near = close_matches(str(value), [str(other) for other in known], n=1)
            raise RecipeError(
                f"unknown {name} {value!r}" + (f" (did you mean {near[0]!r}?)" if near else ""),
                where=name,
                expected=", ".join(map(str, known)),
            )
    if not isinstance(seed, int):
        raise RecipeError("seed is not a whole number", where="seed", found=repr(seed))
    keyed = "source" if tie else keying
    return GrowthSettings(width=width, depth=depth, keying=keyed, tie=tie, seed=seed)  # type: ignore[arg-type]  # checked above


def _rates(given: Mapping[str, float] | None) -> dict[str, float]:
    if given is not None and not isinstance(given, Mapping):
        raise RecipeError(
            "learning_rate is not a mapping", where="learning_rate", expected="{'width': ..., 'depth': ...}"
        )
    rates = {**LEARNING_RATES, **(given or {})}
    wrong = [name for name, value in rates.items() if name not in LEARNING_RATES or not _is_positive(value)]
    if wrong:
        raise RecipeError(
            "learning_rate has a wrong entry",
            where=f"learning_rate[{wrong[0]!r}]",
            expected="positive numbers for 'width' and 'depth'",
            found=rates[wrong[0]],
        )
    return rates


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _shown(progress: Progress | bool | None) -> AbstractContextManager[Progress]:
    if isinstance(progress, Progress):
        return nullcontext(progress)
    if progress is False:
        return nullcontext(Progress())
    return shown_progress(stages=progress is True)


@contextmanager
def _own_modes(device: str) -> Iterator[None]:
    """Compute with gradients and in full precision, whatever mode the caller is in."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(torch.device(device).type, enabled=False),
    ):
        yield


# The source.


@dataclass(frozen=True, kw_only=True)
class _SourceModel:
    """A model as growth reads it.

    Attributes:
        config: flat config. tensors: parameters by their names in the model, on the CPU. device: where models run.
    """

    config: Mapping[str, object]
    inventory: Inventory
    tensors: Mapping[str, torch.Tensor]
    device: str

    @classmethod
    def of(cls, model: object) -> _SourceModel:
        """Read a model. Raises SourceError where it is not supported."""
        name = type(model).__name__
        if not isinstance(model, torch.nn.Module):
            raise SourceError(
                f"{name} is not a model",
                where="model",
                expected="a model of transformers or timm",
                hint="to grow a checkpoint by its name, write a recipe: docs/guide/recipe.md",
            )
        config = _config_of(model)
        family = find_family(config, where=name)
        names = dict.fromkeys(head.architecture for head in family.heads)
        if family.library == "transformers" and name not in names:
            raise SourceError(f"{name} is not supported", where="model", expected=" or ".join(names))
        tensors = {key: tensor.detach() for key, tensor in model.named_parameters()}
        tensors = _as_on_disk(family.for_architecture(name), config, tensors)
        for key, tensor in tensors.items():
            if tensor.dtype not in _DTYPE_NAMES or tensor.is_meta:
                raise SourceError(
                    "a parameter without floating-point values",
                    where=key,
                    expected="float64, float32, float16 or bfloat16",
                    found="no values (meta device)" if tensor.is_meta else tensor.dtype,
                )
            nonfinite = int((~torch.isfinite(tensor)).sum())
            if nonfinite:
                raise SourceError(
                    f"{nonfinite} of {tensor.numel()} values are NaN or infinite",
                    where=key,
                    hint="grow a model with finite parameters",
                )
        specs = {
            key: TensorSpec(name=key, dtype=_DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape))
            for key, tensor in tensors.items()
        }
        inventory = claim_tensors(family, config, specs, label=name)
        for alias, canonical in inventory.copies:
            if not torch.equal(tensors[alias], tensors[canonical]):
                raise SourceError(
                    f"{alias} differs from {canonical}, but the model's config ties them",
                    where=name,
                    hint="set model.config.tie_word_embeddings = False if the head has its own weights",
                )
        device = next(iter(tensors.values())).device if tensors else torch.device("cpu")
        return cls(
            config=config,
            inventory=inventory,
            tensors={key: tensor.cpu() for key, tensor in tensors.items()},
            # Models run where their kernels are exact enough to measure with.
            device=str(device) if device.type == "cuda" else "cpu",
        )

    def read(self, name: str) -> bytearray:
        """Return the bytes of a parameter."""
        tensor = self.tensors[name]
        spec = TensorSpec(name=name, dtype=_DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape))
        return bytearray(tensor_to_bytes(tensor, spec))


def _as_on_disk(
    family: Family, config: Mapping[str, object], values: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the parameters of a model as the library writes them to its files; parameters that no row has keep their names."""
    if not family.in_model:
        return values
    known = [found for found in model_parameters(family, config) if found.name in values]
    others = {*values} - {found.name for found in known}
    tensors = tensors_of(known, values)
    return {family.written(key): tensor for key, tensor in tensors.items()} | {key: values[key] for key in others}


def _config_of(model: torch.nn.Module) -> dict[str, object]:
    """Return the flat config of a model. Raises SourceError for a model that has none."""
    name = type(model).__name__
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if callable(to_dict):
        config = {**to_dict(), "architectures": [name]}
        family = find_family(config, where=name)
        if family.library == "timm":
            raise SourceError(
                f"{name} of transformers is not supported",
                where="model",
                expected=f"a {family.architecture} of timm",
                hint="load the checkpoint that timm has of it: timm.create_model(...)",
            )
        return config
    pretrained = getattr(model, "pretrained_cfg", None)
    if isinstance(pretrained, Mapping) and isinstance(pretrained.get("architecture"), str):
        return _timm_config(model, dict(pretrained))
    raise SourceError(
        f"{name} has no config that describes it",
        where="model",
        expected="a model of transformers or timm, with its head",
    )


def _timm_config(model: Any, pretrained: Mapping[str, Any]) -> dict[str, object]:
    """Read the sizes of a timm model off its modules: timm keeps no config of the arguments that built it."""
    named = {"architecture": pretrained["architecture"]}
    flat = flat_config(named, where="model")
    family = find_family(flat, where="model")
    try:
        block = model.blocks[0]
        arguments: dict[str, object] = {
            "img_size": list(model.patch_embed.img_size),
            "patch_size": list(model.patch_embed.patch_size),
            "embed_dim": model.embed_dim,
            "depth": len(model.blocks),
            "num_heads": block.attn.num_heads,
            "mlp_ratio": block.mlp.fc1.out_features / model.embed_dim,
            "qkv_bias": block.attn.qkv.bias is not None or getattr(block.attn, "q_bias", None) is not None,
        }
        scaled = hasattr(getattr(block, "ls1", None), "gamma") or getattr(block, "gamma_1", None) is not None
        if hasattr(model, "blocks_token_only"):
            last = model.blocks_token_only[0]
            arguments["depth_token_only"] = len(model.blocks_token_only)
            arguments["mlp_ratio_token_only"] = last.mlp.fc1.out_features / model.embed_dim
        elif not scaled:
            # timm leaves out arguments that are None, and for these a zero is as good.
            if flat.get("init_values") and "use_abs_pos_emb" not in flat:
                arguments["init_values"] = 0.0
        elif not flat.get("init_values"):
            arguments["init_values"] = 1e-5  # it only decides how new entries are drawn
        if "class_token" in flat:
            vit = "reg_tokens" in flat
            registers = 0 if model.reg_token is None else model.reg_token.shape[1]
            arguments["class_token"] = model.cls_token is not None
            arguments["reg_tokens" if vit else "num_reg_tokens"] = registers
            arguments["no_embed_class"] = model.no_embed_class
            arguments["fc_norm" if vit else "use_fc_norm"] = not isinstance(model.fc_norm, torch.nn.Identity)
        if "use_abs_pos_emb" in flat:
            arguments["use_abs_pos_emb"] = model.pos_embed is not None
            arguments["use_rot_pos_emb"] = model.rope is not None
        arguments["global_pool"] = getattr(model, "global_pool", "token")
        channels = model.patch_embed.proj.in_channels
    except (AttributeError, IndexError) as error:
        raise SourceError(
            f"{type(model).__name__} is not built as timm builds a {family.name}: {error}", where="model"
        ) from None
    kept = {key: value for key, value in pretrained.items() if key not in ("input_size", "num_classes")}
    return flat_config(
        {
            **named,
            "num_classes": model.num_classes,
            "model_args": {**arguments, "in_chans": channels},
            "pretrained_cfg": {**kept, "input_size": (channels, *model.patch_embed.img_size)},
        },
        where="model",
    )


# Data.


@dataclass(frozen=True, kw_only=True)
class _Splits:
    """Batches to train on, and examples that choose the operator (`validation`) and report its loss (`test`)."""

    batches: tuple[Batch, ...]
    validation: Examples
    test: Examples

    def batch(self, step: int, *, batch_size: int, seed: int) -> Batch:
        return self.batches[step % len(self.batches)]

    @property
    def largest(self) -> int:
        return max(len(next(iter(batch.values()))) for batch in self.batches)


def _split(batches: list[Batch]) -> _Splits:
    if len(batches) < 3:
        raise RecipeError(
            "too few batches",
            where="data",
            expected="at least three: one to train on, one to choose the operator, one to report its loss",
            found=len(batches),
        )
    held = max(1, len(batches) // _HELD_OUT)
    names = batches[0].keys()

    def examples(chosen: list[Batch]) -> Examples:
        return ArrayExamples(arrays={name: np.concatenate([batch[name] for batch in chosen]) for name in names})

    return _Splits(
        batches=tuple(batches[: -2 * held]),
        validation=examples(batches[-2 * held : -held]),
        test=examples(batches[-held:]),
    )


def _batch_format(
    family: Family, config: Mapping[str, object], *, sequence_length: int | None, batch_size: int, seed: int
) -> BatchFormat:
    sizes = family.sizes(config)
    if family.reads == "images":
        image: tuple[int, int, int] | None = (sizes["rgb"], *image_sides(family.complete(config)))
        labels, longest = family.class_count(config), None
    else:
        image, labels, longest = None, sizes[family.vocabulary], family.longest(config)
    return BatchFormat(
        reads=family.reads,
        task=family.task,
        causal=family.task in CAUSAL,
        labels=labels,
        image=image,
        longest=longest,
        sequence_length=sequence_length or min(128, longest or 128),
        batch_size=batch_size,
        seed=seed,
    )


# The operator.


@dataclass(kw_only=True)
class _Fitted:
    """The operator to apply, with its figures; the fields are those of `GrowthReport`."""

    operator: Operator
    preservation: Mapping[str, Any]
    loss: dict[str, float | None]
    fit: Mapping[str, Any] | None
    log: list[dict[str, Any]]


def _preservation(plan: GrowthPlan, **measured: Any) -> dict[str, Any]:
    """Return the certificate as `ligo-convert run --json` prints it."""
    return asdict(Preservation(planned=plan.verdict, reasons=list(plan.reasons), **measured))


def _fitted(
    model: torch.nn.Module,
    source: _SourceModel,
    plan: GrowthPlan,
    splits: _Splits | None,
    *,
    steps: int,
    rates: Mapping[str, float],
    seed: int,
    progress: Progress,
) -> _Fitted:
    """Make the initial operator, measure what it preserves, and fit it where there is data."""
    family, inventory, device = plan.family, source.inventory, source.device
    wide = compute_dtype(inventory) == "F64"
    dtype = torch.float64 if wide else torch.float32
    initial = initial_operator(plan, dtype=np.float64 if wide else np.float32)
    losses: dict[str, float | None] = dict.fromkeys(("source", "initial", "fitted"))
    result = _Fitted(
        operator=initial, preservation=_preservation(plan, unmeasured=COPIES), loss=losses, fit=None, log=[]
    )
    rows = family.rows_for(plan.target)
    stacked = stacked_source(source.read, family, inventory, rows, device=device, dtype=dtype)
    old = MeasuredModel(
        library=LibraryModel(inventory.family, plan.source, device=device), parameters=named_source(inventory, stacked)
    )
    check_given(model, old, dtype=dtype)
    if splits is None and plan.copies_only:
        return result
    try:
        library = LibraryModel(family, plan.target, device=device)
    except SourceError as error:
        # The source's own config has just been built, so the changes are at fault.
        raise RecipeError(error.what, where=WHERE) from None
    library.check_table(rows)
    objective = objective_of(library, old, initial, dtype=dtype)

    def grown(operator: Operator) -> MeasuredModel:
        grower = Grower(operator, family, device=device, dtype=dtype, fetch=fetch_from(stacked))
        return MeasuredModel(library=library, parameters=GrownTarget(grower, rows, stacked).tensors())

    test = splits.test if splits is not None else _random_examples(inventory.family, plan.source)
    batch_size = splits.largest if splits is not None else _RANDOM_EXAMPLES
    with progress.task("measuring the initial operator"):
        new = grown(initial)
        depths = {axis: found.source for axis, found in plan.depths.items()}
        specs = target_specs(family, inventory, plan.target, dtype=None)
        kept = {spec.name: TORCH_DTYPES[spec.dtype] for spec in specs}
        stored = {name: kept[family.written(name)] for name in new.parameters}
        measured = certificate(old, new, initial, depths, test, batch_size=batch_size, dtype=dtype, stored=stored)

        def again() -> dict[str, Any]:
            return in_float64(old.library, library, plan, inventory, source.read, test, batch_size=batch_size)

        certified = judged(measured, plan.verdict, dtype=dtype, data=splits is not None, again=again)
        result.preservation = _preservation(plan, **certified)
        if splits is None:
            return result

        def loss(model: MeasuredModel, measured: Callable[..., torch.Tensor]) -> float:
            return mean_loss(measured, model.parameters, test, batch_size=batch_size, device=device, dtype=dtype)

        if not plan.drawn_rows:
            losses["source"] = 0.0 if old.library.task.loss is None else loss(old, old.library.loss)
        losses["initial"] = loss(new, objective)
        del new
    with progress.task("fitting the operator", steps, unit="steps") as task:

        def on_step(step: int, line: Mapping[str, Any]) -> None:
            task.reach(step)
            task.note(f"loss {line['loss']:.3f}")

        operator, outcome = fit(
            initial,
            family,
            inventory,
            stacked,
            splits,
            _fit_settings(splits, family, plan, steps=steps, rates=rates, seed=seed),
            objective=objective,
            device=device,
            on_step=on_step,
        )
    # Where no step beat the initial operator, that one is kept as it was.
    result.operator = operator if outcome.best_step else initial
    losses["fitted"] = loss(grown(result.operator), objective)
    result.log = outcome.log
    result.fit = {"steps": steps, "best_step": outcome.best_step, "best_validation_loss": outcome.best_loss}
    return result


def _threads(family: Family, plan: GrowthPlan, splits: _Splits | None) -> int:
    """Return the number of threads to fit and measure with: it follows from the work, so that every machine gets the same bytes."""
    length = min(128, family.longest(plan.target) or 128) if family.reads == "text" else 0
    examples = _RANDOM_EXAMPLES
    if splits is not None:
        first = next(iter(splits.batches[0].values()))
        examples, length = splits.largest, first.shape[1] if family.reads == "text" else 0
    length = family.sequence(plan.target, length)
    return default_threads(step_flops(family, plan.target, tokens=examples * length, sequence_length=length))


def _random_examples(family: Family, config: Mapping[str, object]) -> Examples:
    return ArrayExamples(arrays=random_batch(family, config, count=_RANDOM_EXAMPLES))


def _fit_settings(
    splits: _Splits, family: Family, plan: GrowthPlan, *, steps: int, rates: Mapping[str, float], seed: int
) -> FitSettings:
    first = splits.batches[0]
    if "input_ids" in first:
        tokens = int(first["input_ids"].size)
    else:
        tokens = len(first["labels"]) * family.sequence(plan.target, 0)
    return FitSettings(
        steps=steps,
        batch_size=splits.largest,
        micro_batch_size=splits.largest,
        tokens_a_step=tokens,
        width_rate=rates["width"],
        depth_rate=rates["depth"],
        weight_decay=0.0,
        warmup_steps=default_warmup(steps),
        seed=seed,
        evaluate_every=10,
        autocast=False,
    )


# The target.


def _grown_model(model: Model, source: _SourceModel, plan: GrowthPlan, operator: Operator) -> Model:
    """Build a model of the same class and fill it with the grown tensors."""
    family, device = plan.family, next(model.parameters()).device
    made = _empty_like(model, family, plan.target)
    planned = target_specs(family, source.inventory, plan.target, dtype=None)
    by_name = {spec.name: spec for spec in planned}
    parameters = table_parameters(family, made)
    with torch.no_grad():
        stream = grow_stream(source.read, family, source.inventory, operator, planned)
        grown: Iterator[tuple[str, torch.Tensor]]
        grown = ((name, tensor_from_bytes(content, by_name[name])) for name, content in stream)
        if family.in_model:
            on_disk = dict(grown)
            tensors = {
                spec.name: on_disk[family.written(spec.name)]
                for _, _, spec in family.tensors_of(family.rows_for(plan.target), plan.target, dtype="F32")
            }
            grown = iter(parameters_of(model_parameters(family, plan.target), tensors).items())
        for name, tensor in grown:
            parameters[name].data = tensor.to(device=device).clone()
    tie_weights = getattr(made, "tie_weights", None)
    if callable(tie_weights) and family.is_tied(plan.target):
        tie_weights()
    copy_requires_grad(model, made, source.inventory, plan)
    if getattr(model, "generation_config", None) is not None:
        made.generation_config = copy.deepcopy(model.generation_config)
    return made.to(device).eval()


def _empty_like(model: Model, family: Family, config: Mapping[str, object]) -> Model:
    """Build a model of the same class for a config, with weights that are about to be replaced."""
    if family.library == "transformers":
        empty = type(model)(grown_config(family, model.config, config), **family.chosen.options)
        untie(family, config, empty)
        return empty
    import timm

    written = written_config(family, config, {})
    arguments = {
        **written["model_args"],
        "num_classes": written["num_classes"],
        "in_chans": family.sizes(config)["rgb"],
        **drop_rates(model),
    }
    made = timm.create_model(written["architecture"], pretrained=False, **arguments)
    if type(made) is not type(model):
        raise SourceError(
            f"timm builds a {type(made).__name__} for this model", where="model", found=type(model).__name__
        )
    return made


def _family_of(operator: Operator) -> Family:
    return FAMILIES[operator.family].with_experts(operator.source).for_architecture(operator.head)
