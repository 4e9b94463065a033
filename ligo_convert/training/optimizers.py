"""Optimizers of a training run: AdamW, and Muon for the groups that ask for it.

Input: parameter groups. Output: steps, and the state of every parameter by name.

Sources: AdamW (Loshchilov and Hutter, arXiv:1711.05101), Muon (Jordan et al., 2024), with its updates scaled to the root mean square of
AdamW's, so that both take the same learning rate (Liu et al., arXiv:2502.16982).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ligo_convert.errors import MachineError
from ligo_convert.families.schema import Family
from ligo_convert.training.runs import OptimizerName, OptimizerSettings

# Name of a parameter -> `exp_avg`, `exp_avg_sq` and `step` of AdamW, or `momentum_buffer` of Muon. A parameter that has not had a
# gradient yet has none.
Moments = dict[str, dict[str, torch.Tensor]]

# Name of a state in a stored file -> the optimizer's own name for it.
STORED = {"first": "exp_avg", "second": "exp_avg_sq", "momentum": "momentum_buffer"}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that share a learning rate. Weight decay pulls them towards `anchor` if given, else towards zero.

    Attributes:
        rule: the optimizer of this group.
    """

    name: str
    parameters: dict[str, torch.nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0
    anchor: dict[str, torch.Tensor] | None = None
    rule: OptimizerName = "adamw"


def parameter_groups(
    family: Family,
    config: Mapping[str, object],
    parameters: Mapping[str, torch.nn.Parameter],
    settings: OptimizerSettings,
    *,
    learning_rate: float,
) -> list[Group]:
    """Return the groups of a model's parameters: Muon's matrices, other matrices with weight decay, vectors without.

    Muon takes the matrices inside the layers. Embeddings, heads, vectors and tensors of three or more dims stay with AdamW, as the author
    of Muon advises.
    """
    inside = {
        row.name(layer)
        for row in family.rows_for(config)
        if row.depth is not None
        for layer in family.layers(row, config)
    }
    hidden, matrices, vectors = {}, {}, {}
    for name, parameter in parameters.items():
        if settings.name == "muon" and parameter.ndim == 2 and name in inside:
            hidden[name] = parameter
        elif parameter.ndim > 1:
            matrices[name] = parameter
        else:
            vectors[name] = parameter
    decay = settings.weight_decay
    groups = [
        Group(name="hidden", parameters=hidden, learning_rate=learning_rate, weight_decay=decay, rule="muon"),
        Group(name="matrices", parameters=matrices, learning_rate=learning_rate, weight_decay=decay),
        Group(name="vectors", parameters=vectors, learning_rate=learning_rate),
    ]
    return [group for group in groups if group.parameters]


class Optimizers:
    """The torch optimizers of a list of groups.

    Args:
        groups: groups of one rule share an optimizer.
        settings: moments' decay rates and momentum; its name and weight decay are those of the groups.
        fused: whether to use torch's fused AdamW, which is faster but differs in the last bits.
    """

    def __init__(self, groups: Sequence[Group], settings: OptimizerSettings, *, fused: bool) -> None:
        self._fused = fused
        self._parts: list[tuple[Group, torch.optim.Optimizer, dict[str, object]]] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        for rule in dict.fromkeys(group.rule for group in groups):
            own = [group for group in groups if group.rule == rule]
            made = _make(rule, own, settings, fused=fused)
            self._optimizers.append(made)
            self._parts += zip(own, [made] * len(own), made.param_groups, strict=True)
        self._owner = {
            name: (parameter, made) for group, made, _ in self._parts for name, parameter in group.parameters.items()
        }

    def zero_grad(self) -> None:
        for made in self._optimizers:
            made.zero_grad(set_to_none=True)

    def step(self, factor: float) -> None:
        """Take one step with the learning rates times `factor`."""
        for group, _, settings in self._parts:
            settings["lr"] = group.learning_rate * factor
        for made in self._optimizers:
            made.step()

    def moments(self) -> Moments:
        """Return the state of every parameter that has one. The tensors are the optimizer's own, not copies."""
        return {
            name: {key: value for key, value in made.state[parameter].items() if isinstance(value, torch.Tensor)}
            for name, (parameter, made) in self._owner.items()
            if made.state.get(parameter)
        }

    def set_moments(self, moments: Moments) -> None:
        """Set the state of the parameters named in `moments`. The others keep none."""
        for name, state in moments.items():
            parameter, made = self._owner[name]
            # A fused kernel reads the number of steps on the parameter's device; others on the CPU.
            place = parameter.device if self._fused else torch.device("cpu")
            made.state[parameter] = {
                key: value.to(place) if key == "step" else value.to(parameter.device).contiguous()
                for key, value in state.items()
            }


def matching_moments(
    moments: Moments, family: Family, config: Mapping[str, object], settings: OptimizerSettings
) -> Moments:
    """Return the state that the optimizers of these settings can go on with: that of their own rule, in the tensor's shape.

    Args:
        moments: state by canonical tensor name, perhaps of another optimizer.
        config: config of the model.
    """
    specs = {spec.name: spec for _, _, spec in family.tensors_of(family.rows_for(config), config, dtype="F32")}
    parameters = {name: torch.nn.Parameter(torch.empty(spec.shape, device="meta")) for name, spec in specs.items()}
    wanted = {
        name: {"momentum_buffer"} if group.rule == "muon" else {"exp_avg", "exp_avg_sq", "step"}
        for group in parameter_groups(family, config, parameters, settings, learning_rate=0.0)
        for name in group.parameters
    }
    return {
        name: state
        for name, state in moments.items()
        if set(state) == wanted.get(name)
        and all(tuple(value.shape) in ((), specs[name].shape) for value in state.values())
    }


def _make(
    rule: OptimizerName, groups: Sequence[Group], settings: OptimizerSettings, *, fused: bool
) -> torch.optim.Optimizer:
    options = [
        {
            "params": list(group.parameters.values()),
            "lr": group.learning_rate,
            "weight_decay": 0.0 if group.anchor is not None else group.weight_decay,
        }
        for group in groups
    ]
    if rule == "adamw":
        return torch.optim.AdamW(options, betas=settings.betas, fused=fused)
    require_optimizer(rule)
    from ligo_convert.training.muon import BatchedMuon  # a torch without Muon cannot import it

    return BatchedMuon(options, momentum=settings.momentum)


def require_optimizer(name: str, *, where: str = "") -> None:
    """Raise MachineError if the installed torch lacks an optimizer. `where` is the key of the recipe that names it."""
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise MachineError(
            "the installed torch has no Muon",
            where=where,
            expected="torch 2.9 or newer",
            found=torch.__version__,
            hint="use adamw",
        )


def stored_moments(moments: Moments) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return a state as arrays, `first/NAME` and the like, and AdamW's number of steps by name."""
    arrays = {
        f"{short}/{name}": state[key].detach().cpu().numpy()
        for name, state in moments.items()
        for short, key in STORED.items()
        if key in state
    }
    return arrays, {name: float(state["step"]) for name, state in moments.items() if "step" in state}


def read_moments(arrays: Mapping[str, np.ndarray], steps: Mapping[str, float]) -> Moments:
    """Return the state that `stored_moments` made arrays of."""
    moments: Moments = {name: {"step": torch.tensor(count, dtype=torch.float32)} for name, count in steps.items()}
    for label, array in arrays.items():
        short, _, name = label.partition("/")
        if short in STORED:
            moments.setdefault(name, {})[STORED[short]] = torch.from_numpy(array)
    return moments
