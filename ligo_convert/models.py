"""The library's own model of a family: built on the meta device, run on tensors given from outside.

What comes in: a config as plain data, tensors by their canonical names. What goes out: losses, logits, hidden states. Everything
goes through `functional_call` with `strict=True`: a missing parameter, or a buffer left on the meta device, can otherwise end in
silent garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch.func import functional_call
from transformers.utils import logging as hf_logging

from ligo_convert.errors import LigoError, SourceError
from ligo_convert.family import Family, Row


def library_config(family: Family, config: Mapping[str, object]) -> Any:
    """The library's config object of a plain config. Raises SourceError where the library refuses it or sees other sizes."""
    data = {key: value for key, value in config.items() if key not in ("model_type", "architectures", "auto_map")}
    with quiet():
        try:
            made = transformers.AutoConfig.for_model(family.model_type, **data)
        except Exception as error:  # noqa: BLE001  the library validates with errors of many classes; the user needs its words
            raise SourceError(f"transformers refuses this {family.name} config: {error}", where="config.json") from None
    seen, meant = family.sizes(made.to_dict()), family.sizes(config)
    if seen != meant:
        different = {axis: (meant[axis], seen[axis]) for axis in meant if meant[axis] != seen[axis]}
        raise LigoError(f"{family.name}: transformers derives other sizes from this config: {different}")
    return made


@contextmanager
def quiet() -> Iterator[None]:
    """The library's own warnings (token ids, generation settings) kept off the user's screen."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters are registered on the meta device and cost nothing; buffers are built for real."""
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


class LibraryModel:
    """A model of the library without weights of its own, in evaluation mode (no dropout).

    Args:
        family, config: which model. device: where its buffers lie and its inputs go.
    """

    def __init__(self, family: Family, config: Mapping[str, object], *, device: str = "cpu") -> None:
        self.family, self.config, self.device = family, config, device
        made = library_config(family, config)
        with quiet():
            try:
                with _parameters_on_meta():
                    model = getattr(transformers, family.architecture)(made)
            except Exception as error:  # noqa: BLE001  an unknown activation is a KeyError, and so on: the user needs the library's words
                raise SourceError(
                    f"transformers cannot build this {family.name}: {type(error).__name__}: {error}",
                    where="config.json",
                ) from None
            model.tie_weights()
        # The library derives it from the class's name and warns where it cannot; a causal model's is always this one.
        model.loss_type = "ForCausalLM"
        self.module: torch.nn.Module = model.eval()
        self.buffers = {name: buffer.to(device) for name, buffer in model.named_buffers()}
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    def check_table(self, rows: tuple[Row, ...]) -> None:
        """Require that the family's table and the library's model agree on every name and shape."""
        wanted = {spec.name: spec.shape for _, _, spec in self.family.tensors_of(rows, self.config, dtype="F32")}
        if wanted != self.shapes:
            names = sorted({*wanted.items()} ^ {*self.shapes.items()})[:4]
            raise LigoError(
                f"{self.family.name}: the table and transformers' {self.family.architecture} differ: {names}"
            )

    def __call__(self, parameters: Mapping[str, torch.Tensor], **inputs: object) -> Any:
        """Run the model on `parameters`, whose names and shapes must be exactly the model's own."""
        for name, shape in self.shapes.items():
            assert tuple(parameters[name].shape) == shape, (name, tuple(parameters[name].shape), shape)
        return functional_call(
            self.module, {**parameters, **self.buffers}, args=(), kwargs={"use_cache": False, **inputs}, strict=True
        )

    def loss(self, parameters: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """The library's own next-token loss, mean nats a token; `tokens` [batch, sequence]."""
        found = self(parameters, input_ids=tokens, labels=tokens).loss
        assert isinstance(found, torch.Tensor)
        return found


Forward = Callable[[torch.Tensor], Any]


def mean_loss(
    model: LibraryModel, parameters: Mapping[str, torch.Tensor], blocks: Any, *, batch_size: int, autocast: bool = False
) -> float:
    """Mean loss over token blocks [blocks, sequence], every block weighing the same."""
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast(model.device, dtype=torch.bfloat16, enabled=autocast):
        for first in range(0, len(blocks), batch_size):
            tokens = torch.as_tensor(blocks[first : first + batch_size].astype("int64"), device=model.device)
            total += float(model.loss(parameters, tokens)) * len(tokens)
            count += len(tokens)
    return total / count
