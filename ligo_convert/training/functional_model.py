"""Run the library's own model of a family on given tensors, without weights of its own.

Input: a config as plain data, tensors by canonical name, batches.
Output: losses, outputs, hidden states. The model is built on the meta device and run by `functional_call` with `strict=True`: without
it, a missing parameter or a buffer left on the meta device can give wrong results silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch.func import functional_call

from ligo_convert.data.examples import Examples
from ligo_convert.errors import LigoError
from ligo_convert.families.configs import written_config
from ligo_convert.families.notation import before_layers, depth_axis
from ligo_convert.families.parameters import model_parameters
from ligo_convert.families.schema import Family, Row
from ligo_convert.training.library_config import library_config, quiet, refused
from ligo_convert.training.model_tensors import parameters_of
from ligo_convert.training.tasks import TASKS, on_device, weight

Tensors = Mapping[str, torch.Tensor]


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Register parameters on the meta device, where they take no memory; build buffers normally."""
    register = torch.nn.Module.register_parameter

    def on_meta(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None:
            param = torch.nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    torch.nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextmanager
def stateless(model: torch.nn.Module) -> Iterator[None]:
    """Undo what a forward pass leaves behind in modules with buffers: rotary embeddings remember the longest sequence that they saw."""
    kept = [(part, dict(part.__dict__), dict(part._buffers)) for part in model.modules() if part._buffers]
    try:
        yield
    finally:
        for part, attributes, buffers in kept:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            part._buffers.clear()
            part._buffers.update(buffers)


def untie(family: Family, config: Mapping[str, object], model: torch.nn.Module) -> None:
    """Give the tied aliases parameters of their own where a config unties them and the library's class ties them nevertheless (T5).

    Such a class keeps a head of its own that it finds in a checkpoint.
    """
    if family.is_tied(config):
        return
    every = dict(model.named_parameters(remove_duplicate=False))
    for alias, canonical in family.tied.items():
        name, shared = family.written(alias), every.get(family.written(canonical))
        if shared is not None and every.get(name) is shared:
            module, _, own = name.rpartition(".")
            model.get_submodule(module).register_parameter(own, torch.nn.Parameter(torch.empty_like(shared)))


def table_parameters(family: Family, model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of a library's model, a tied one under the name that the family's table keeps.

    torch names a tied parameter by the module that was registered first. In some classes that is the head.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    names = {family.written(alias): family.written(canonical) for alias, canonical in family.tied.items()}
    return {
        names[name] if name in names and every.get(names[name]) is parameter else name: parameter
        for name, parameter in model.named_parameters()
    }


class LibraryModel:
    """A model of the library without weights of its own, in evaluation mode (no dropout).

    Args:
        family: the family, narrowed to the model's class.
        config: config of the model.
        device: device of its buffers and inputs.
    """

    def __init__(self, family: Family, config: Mapping[str, object], *, device: str = "cpu") -> None:
        self.family, self.config, self.device = family, config, device
        self.task = TASKS[family.task]
        model = _LIBRARIES[family.library](family, config)
        self.module: torch.nn.Module = model.eval()
        self.buffers = {name: buffer.to(device) for name, buffer in model.named_buffers()}
        self.shapes = {name: tuple(parameter.shape) for name, parameter in table_parameters(family, model).items()}
        self.parameters = model_parameters(family, config) if family.in_model else ()

    def check_table(self, rows: tuple[Row, ...]) -> None:
        """Require that the family's definition and the library's model agree on every tensor name and shape. Raises LigoError."""
        tensors = self.family.tensors_of(rows, self.config, dtype="F32")
        specs = {spec.name: spec.shape for _, _, spec in tensors}
        empty = {name: torch.empty(shape, device="meta") for name, shape in specs.items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in self.named(empty).items()}
        if wanted != self.shapes:
            names = sorted({*wanted.items()} ^ {*self.shapes.items()})[:4]
            raise LigoError(
                f"{self.family.name}: its definition and {self.family.library}'s {self.family.architecture} differ: {names}"
            )

    def named(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Return tensors of canonical names as the parameters of the library's model, by their names there."""
        if self.parameters:
            return parameters_of(self.parameters, tensors)
        return {self.family.written(name): tensor for name, tensor in tensors.items()}

    def __call__(self, parameters: Tensors, batch: Tensors) -> torch.Tensor:
        """Return the model's output for `parameters`, which must have exactly the model's canonical names and shapes."""
        return self.task.output(self._run(parameters, batch))

    def states(self, parameters: Tensors, batch: Tensors) -> torch.Tensor:
        """Return the last hidden states [batch, sequence, width], for objectives that compare them."""
        return (self.task.states or self.task.output)(self._run(parameters, batch))

    def _run(self, parameters: Tensors, batch: Tensors) -> Any:
        named = self.named(parameters)
        for name, shape in self.shapes.items():
            assert tuple(named[name].shape) == shape, (name, tuple(named[name].shape), shape)
        inputs = self.task.inputs(batch)
        # timm's models take the images as a positional argument.
        args = tuple(inputs.values()) if self.family.library == "timm" else ()
        with stateless(self.module):
            return functional_call(
                self.module, {**named, **self.buffers}, args=args, kwargs={} if args else inputs, strict=True
            )

    def watched(
        self, parameters: Tensors, batch: Tensors, see: Callable[[str, int, torch.Tensor], None]
    ) -> torch.Tensor:
        """Return the output, and call `see` with depth axis, layer and hidden states after every layer."""

        def hook_of(axis: str, layer: int) -> Callable[[torch.nn.Module, Any, Any], None]:
            def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
                see(axis, layer, output[0] if isinstance(output, tuple) else output)

            return hook

        modules = dict(self.module.named_modules())
        handles = [
            modules[name].register_forward_hook(hook_of(axis, layer))
            for axis in self.family.depth_axes
            for layer, name in enumerate(self.layers(axis))
        ]
        try:
            return self(parameters, batch)
        finally:
            for handle in handles:
                handle.remove()

    def layers(self, axis: str) -> list[str]:
        """Return the names of the layer modules of a depth axis."""
        patterns = (*self.family.in_model, *(row.pattern for row in self.family.rows))
        pattern = next(pattern for pattern in patterns if depth_axis(pattern) == axis)
        before = self.family.written(before_layers(pattern))
        return [f"{before}{layer}" for layer in range(self.family.sizes(self.config)[axis])]

    def loss(self, parameters: Tensors, batch: Tensors) -> torch.Tensor:
        """Return the task's mean loss, in nats."""
        assert self.task.loss is not None, f"the task {self.family.task} has no loss"
        return self.task.loss(self(parameters, batch), batch)


def _build(family: Family, config: Mapping[str, object], make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with quiet():
        try:
            with parameters_on_meta():
                return make()
        except Exception as error:  # noqa: BLE001  the library raises many classes of errors; the user needs its message
            raise refused(error, family, config) from None


def _transformers_model(family: Family, config: Mapping[str, object]) -> torch.nn.Module:
    made = library_config(family, config)
    if family.experts:
        # The library's faster ways to run experts take no float64, in which exactness is measured.
        made._experts_implementation = PLAIN_EXPERTS
    model = _build(family, config, lambda: getattr(transformers, family.architecture)(made, **family.chosen.options))
    model.tie_weights()  # type: ignore[operator]
    untie(family, config, model)
    if family.task == "sequence-classification" and made.pad_token_id is None:
        # Decoders classify the last token that is no padding, and refuse a batch if they do not know which those are. No text here is
        # padded without a padding id: every token counts.
        made.pad_token_id = _NO_TOKEN
    return model


def _timm_model(family: Family, config: Mapping[str, object]) -> torch.nn.Module:
    import timm

    made = written_config(family, config, {})
    arguments = {**made["model_args"], "num_classes": made["num_classes"], "in_chans": family.sizes(config)["rgb"]}
    return _build(family, config, lambda: timm.create_model(made["architecture"], pretrained=False, **arguments))


# transformers' name of running one expert after the other.
PLAIN_EXPERTS = "eager"

_NO_TOKEN = -1  # the id of no token

_LIBRARIES: dict[str, Callable[[Family, Mapping[str, object]], torch.nn.Module]] = {
    "transformers": _transformers_model,
    "timm": _timm_model,
}


Objective = Callable[[Tensors, Tensors], torch.Tensor]  # (parameters, batch) -> mean loss


def backward_in_parts(
    objective: Objective,
    tensors: Tensors,
    batch: Tensors,
    *,
    micro_batch_size: int,
    device: str,
    autocast: bool,
    rows: range | None = None,
) -> float:
    """Return the mean loss of a batch, and sum its gradients over micro batches. The result does not depend on their size.

    Args:
        rows: the rows of the batch that this process takes; loss and gradients are then its shares of the sums. None for all rows.
    """
    total = 0.0
    rows = range(len(next(iter(batch.values())))) if rows is None else rows
    for first in range(rows.start, rows.stop, micro_batch_size):
        part = {name: tensor[first : min(first + micro_batch_size, rows.stop)] for name, tensor in batch.items()}
        if not (counts := weight(part)):
            # The mean loss over no label is no number.
            continue
        share = counts / weight(batch)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=autocast):
            loss = objective(tensors, part) * share
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def mean_loss(
    objective: Objective,
    parameters: Tensors,
    examples: Examples,
    *,
    batch_size: int,
    device: str,
    dtype: torch.dtype,
    autocast: bool = False,
) -> float:
    """Return the mean loss over all examples, each (for masked tokens, each label) with the same weight."""
    total, weights = 0.0, 0.0
    with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=autocast):
        for first in range(0, len(examples), batch_size):
            rows = range(first, min(first + batch_size, len(examples)))
            batch = on_device(examples.take(rows), device, dtype)
            if counts := weight(batch):
                total += float(objective(parameters, batch)) * counts
                weights += counts
    return total / weights
