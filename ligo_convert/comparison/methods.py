"""Define the methods of `compare`: each has an initialisation, a training strategy and optionally a learned operator.

Input: a method name, with options after plus signs (`ligo+token-drop`), WIDTH/DEPTH (`lemon/stack`), or WIDTH/DEPTH@SHARE
(`lemon/identity@0.6`: a model of the source's size, drawn, that grows on the way).
Output: a `Method`. The initialisations are defined in `growth.width_methods` and `growth.depth_methods`, the strategies in `strategies`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ligo_convert.comparison.strategies import OPTIONS, STRATEGIES
from ligo_convert.errors import close_matches
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.width_methods import WIDTHS

SCRATCH = "scratch"

_MANY = 100  # layers of a target that every strategy can take apart


@dataclass(frozen=True, kw_only=True)
class FitRates:
    """Learning rates of the operator; they replace those of the recipe's `fit`."""

    width_rate: float
    depth_rate: float


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method: an initialisation, a training strategy, and optionally a learned operator.

    Attributes:
        name: name with options, as on the command line.
        width: width method of the initialisation. If `width` and `depth` are both `random`, the target starts from the library's random
            initialisation, without the source.
        depth: depth method of the initialisation.
        strategy: name in STRATEGIES.
        learns_operator: whether the operator is learned before training.
        ring: rank of the tensor rings that are learned instead of the operator's maps; 0 for none.
        fit_rates: learning rates of the operator; None for those of the recipe.
        tie: `paper` for the operator as printed in the LiGO paper, else None.
        paper: source in the literature, printed by `ligo-convert methods`.
        summary: description, printed by `ligo-convert methods`.
        options: names of the options.
        drops_layers: whether training skips layers.
        drops_tokens: whether training skips tokens.
        grows_at: share of the steps at which a model of the source's size grows into the target, in the same run; None to grow at once.
        from_source: whether a method that grows on the way starts from the trained source instead of drawn weights.
        state: what becomes of the optimizer's state at every growth; None for the policy of the strategy's parts.
        follows_schedule: whether the run grows as `growth.schedule` of the recipe says.
        chooses: number of starts that are tried for a short while, of which the one ahead is trained on; 0 for the one start.
        warms: whether the learning rate rises again from zero at every growth on the way.
        shape: learning rate schedule.
        optimizer: optimizer; None for the one that is best for scratch.
        decay: share of a run in which the learning rate falls to zero; None for the one that is best for scratch.
        warmup: share of the budget in which the learning rate rises; None for `compare.warmup_fraction`.
    """

    name: str
    width: str
    depth: str
    strategy: str = "plain"
    learns_operator: bool = False
    ring: int = 0
    fit_rates: FitRates | None = None
    tie: str | None = None
    paper: str
    summary: str
    options: tuple[str, ...] = ()
    drops_layers: bool = False
    drops_tokens: bool = False
    grows_at: float | None = None
    from_source: bool = False
    follows_schedule: bool = False
    chooses: int = 0
    state: str | None = None
    warms: bool = False
    shape: Literal["stable", "cosine"] = "stable"
    optimizer: Literal["adamw", "muon"] | None = None
    decay: float | None = None
    warmup: float | None = None

    @property
    def own_settings(self) -> tuple[str, ...]:
        """Return the settings that this method has of its own, where all others share those that are best for scratch."""
        return tuple(name for name in ("optimizer", "decay", "warmup") if getattr(self, name) is not None)

    @property
    def grows_on_the_way(self) -> bool:
        """Return whether the model grows after the first step."""
        return self.grows_at is not None or len({part.layers for part in STRATEGIES[self.strategy].parts(_MANY)}) > 1

    @property
    def random_init(self) -> bool:
        """Return whether the target starts from random weights, without the source."""
        return self.width == self.depth == "random"

    @property
    def starts_from_source(self) -> bool:
        """Return whether the target starts from the trained source."""
        return not self.random_init and (self.grows_at is None or self.from_source)

    @property
    def needs_source(self) -> bool:
        """Return whether the method uses the source, as initialisation or as teacher; `net` then charges the source's training."""
        return self.starts_from_source or self.strategy == "inherit"

    @property
    def preserves(self) -> str:
        """Describe in a word whether the initialisation preserves the source's function."""
        if self.random_init:
            return "no source"
        if self.learns_operator:
            return "until it is learned" if self._preserving else "no"
        return "yes" if self._preserving else "no"

    @property
    def _preserving(self) -> bool:
        # `mean-preserving` equals `lemon` wherever `lemon` is exact.
        method = WIDTHS[self.width]
        return (method.preserving or method.rewrite == "mean-preserving") and DEPTHS[self.depth].verdict == "exact"


def _define(name: str, width: str, depth: str, paper: str, summary: str, **more: object) -> Method:
    return Method(name=name, width=width, depth=depth, paper=paper, summary=summary, **more)  # type: ignore[arg-type]


_LIGO = "LiGO, arXiv:2303.00980"

_BERT2BERT = "bert2BERT, arXiv:2110.07143"

METHODS: dict[str, Method] = {
    found.name: found
    for found in (
        _define(SCRATCH, "random", "random", "-", "the target from random weights, trained for the whole budget"),
        _define(
            "stackbert",
            "random",
            "random",
            "StackBERT, Gong et al., ICML 2019",
            "from random weights with a quarter of the layers; the stack of layers is doubled twice during training",
            strategy="stacking",
        ),
        _define(
            "mslt",
            "random",
            "random",
            "MSLT, arXiv:2011.13635",
            "from random weights; layers are added on top, and only they are trained",
            strategy="layerwise",
        ),
        _define(
            "gradual",
            "random",
            "random",
            "gradual stacking, as in arXiv:2409.19044",
            "from random weights with a quarter of the layers; three times a copy of the top block is added",
            strategy="gradual",
        ),
        _define(
            "midas",
            "random",
            "random",
            "MIDAS, arXiv:2409.19044",
            "from random weights with a quarter of the layers; three times a copy of the middle block is added",
            strategy="midas",
        ),
        _define(
            "g-stack",
            "random",
            "random",
            "G_stack, arXiv:2405.15319",
            "from random weights with a quarter of the layers; after a tenth of the steps they are stacked four times",
            strategy="early-stack",
        ),
        _define(
            "progressive",
            "random",
            "random",
            "Deep Progressive Training, arXiv:2511.04981",
            "from random weights with one layer, then all layers; the new ones have random weights",
            strategy="progressive",
        ),
        _define(
            "apollo",
            "random",
            "random",
            "Apollo, arXiv:2401.09192",
            "from random weights with few layers, trained as models of several depths, then interpolated",
            strategy="shared",
        ),
        _define(
            "sparkling",
            "sparkling",
            "interpolate",
            "SPARKLING, arXiv:2602.02472",
            "from random weights in the source's size; grown after half of the steps, root mean square kept; the rate warms up again",
            grows_at=0.5,
            state="carry",
            warms=True,
        ),
        _define(
            "late",
            "random",
            "random",
            "-",
            "from random weights with half of the layers; after half of the steps, copies are put between them",
            strategy="late",
        ),
        _define(
            "ki",
            "random",
            "random",
            "KI, arXiv:2105.13880",
            "from random weights; distilled from the source for half of the steps",
            strategy="inherit",
        ),
        _define(
            "bert2bert",
            "aki",
            "stack",
            _BERT2BERT,
            "AKI in width, the stack of layers repeated, then two-stage training",
            strategy="two-stage",
        ),
        _define("bert2bert-aki", "aki", "stack", _BERT2BERT, "AKI in width, the stack of layers repeated"),
        _define("bert2bert-fpi", "net2net", "stack", _BERT2BERT, "FPI in width, the stack of layers repeated"),
        _define(
            "freeze",
            "mean-preserving",
            "identity",
            "LLaMA-Pro, arXiv:2401.02415",
            "preserves the function as nearly as possible; only the added parameters are trained",
            strategy="added-only",
        ),
        _define(
            "direct",
            "direct",
            "direct",
            _LIGO,
            "DirectCopy: the source's entries are copied, all others have random weights",
        ),
        _define("interpolate", "net2net", "interpolate", _LIGO, "Interpolation: each layer is repeated in place"),
        _define(
            "net2net",
            "net2net",
            "identity",
            "Net2Net, arXiv:1511.05641",
            "copied entries in width; new layers start as the identity",
        ),
        _define(
            "lemon",
            "lemon",
            "identity",
            "LEMON, arXiv:2310.07999",
            "preserves the function at any ratio; new layers start as the identity",
        ),
        _define(
            "chosen",
            "mean-preserving",
            "identity",
            "landscape-aware growing, arXiv:2406.02469",
            "three starts are tried briefly and the best one is trained on; the trials are charged",
            chooses=3,
        ),
        _define(
            "hyperclone",
            "hyperclone",
            "identity",
            "HyperCloning, arXiv:2409.12903",
            "whole tiles, reads divided evenly; new layers start as the identity",
        ),
        _define(
            "ligo-paper",
            "net2net",
            "stack",
            _LIGO,
            "LiGO as the paper prints it: read maps tied to write maps, maps by source layer",
            learns_operator=True,
            fit_rates=FitRates(width_rate=1e-3, depth_rate=3e-2),
            tie="paper",
        ),
        _define(
            "ligo",
            "mean-preserving",
            "identity",
            _LIGO,
            "LiGO: an untied operator, learned from a start that preserves the function as nearly as possible",
            learns_operator=True,
        ),
        _define(
            "mango",
            "mean-preserving",
            "identity",
            "Mango, arXiv:2310.10699",
            "a tensor ring over all matrices of the layers, learned beside a start that preserves the function as nearly as possible",
            learns_operator=True,
            ring=1,
            fit_rates=FitRates(width_rate=1e-3, depth_rate=1e-3),
        ),
    )
}

# Applies only to a recipe with `growth.schedule`, so it is no part of `METHODS`.
SCHEDULE = _define(
    "schedule",
    "random",
    "random",
    "-",
    "grown in the stages of the recipe's growth.schedule, from random weights or source.model",
    follows_schedule=True,
)


def method_named(name: str) -> Method:
    """Return the method with this name. Raises ValueError with the known names."""
    base, *options = name.split("+")
    found = SCHEDULE if base == SCHEDULE.name else METHODS.get(base) or _pair(base)
    for option in options:
        found = _with_option(found, name, option)
    if found.from_source and found.grows_at is None:
        raise ValueError(f"{name}: +source is for methods that grow on the way, such as lemon/identity@0.4")
    if found.chooses and (found.learns_operator or found.shape != "stable"):
        raise ValueError(f"{name}: a choice is made between starts without a fit, on runs that share their first steps")
    if found.learns_operator and not found.starts_from_source:
        raise ValueError(f"{name}: drawn weights have no operator to learn")
    if found.learns_operator and found.grows_at is not None:
        raise ValueError(f"{name}: an operator is learned only where the source grows at once")
    _require_effect(found, name, options)
    assert found.strategy in STRATEGIES
    added = (OPTIONS[option.partition("@")[0]].summary for option in options)
    return replace(found, name=name, options=tuple(options), summary="; ".join((found.summary, *added)))


def _with_option(found: Method, name: str, option: str) -> Method:
    """Return a method with one more option, such as `fit` or `decay@0.4`. Raises ValueError."""
    key, at, text = option.partition("@")
    if key not in OPTIONS:
        raise ValueError(f"no option {key!r}: {', '.join(OPTIONS)}")
    chosen = OPTIONS[key]
    if at and chosen.share_of is None:
        raise ValueError(f"{name}: +{key} takes no share after @")
    if chosen.strategy is not None and found.strategy != "plain":
        raise ValueError(f"{name}: +{key} is a strategy of its own, and {found.name} has one: {found.strategy}")
    if found.follows_schedule and (chosen.strategy or chosen.state or chosen.warms):
        raise ValueError(f"{name}: +{key} does not apply; set it in the stages of growth.schedule")
    shares = {} if chosen.share_of is None else {chosen.share_of: _share(name, key, text)}
    return replace(
        found,
        strategy=chosen.strategy or found.strategy,
        learns_operator=found.learns_operator or chosen.learns_operator,
        drops_layers=found.drops_layers or chosen.drops_layers,
        drops_tokens=found.drops_tokens or chosen.drops_tokens,
        from_source=found.from_source or chosen.from_source,
        state=chosen.state or found.state,
        warms=found.warms or chosen.warms,
        shape=chosen.shape or found.shape,
        optimizer=chosen.optimizer or found.optimizer,
        decay=shares.get("decay", found.decay),
        warmup=shares.get("warmup", found.warmup),
    )


def _share(name: str, key: str, text: str) -> float:
    """Return the share after `@`: above 0, and for a decay at most 1, for a warmup less. Raises ValueError."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not (0 < share < 1 or (key == "decay" and share == 1)):
        raise ValueError(f"{name}: the share after +{key}@ is a number above 0 and at most 1, such as +{key}@0.2")
    return share


def _require_effect(found: Method, name: str, options: Sequence[str]) -> None:
    """Require that every option changes something, and that no two say different things. Raises ValueError."""
    keys = [option.partition("@")[0] for option in options]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"{name}: +{twice} is given twice")
    for what, group in (
        ("the optimizer's state", [key for key in keys if OPTIONS[key].state]),
        ("the optimizer", [key for key in keys if OPTIONS[key].optimizer]),
    ):
        if len(group) > 1:
            raise ValueError(f"{name}: +{group[0]} and +{group[1]} both say what becomes of {what}; give one of them")
    grows_at_once = found.starts_from_source and found.grows_at is None and not found.learns_operator
    if any(OPTIONS[key].state for key in keys) and not (grows_at_once or found.grows_on_the_way):
        why = "its operator is learned, and its optimizer starts afresh" if found.learns_operator else "it never grows"
        raise ValueError(f"{name}: an option for the optimizer's state has no effect: {why}")
    if "warm" in keys and not found.grows_on_the_way:
        raise ValueError(f"{name}: +warm is for methods that grow on the way, such as lemon/identity@0.4")
    if found.decay is not None and found.shape == "cosine":
        raise ValueError(f"{name}: +decay does not apply under +cosine, where the rate falls from the warmup on")


def _pair(name: str) -> Method:
    """Return the method WIDTH/DEPTH, or WIDTH/DEPTH@SHARE. Raises ValueError."""
    pair, at, share = name.partition("@")
    width, slash, depth = pair.partition("/")
    if not slash or width not in WIDTHS or depth not in DEPTHS:
        raise ValueError(_unknown(name))
    if not at:
        return _define(name, width, depth, "-", f"width by {width}, depth by {depth}")
    try:
        grows_at = float(share)
    except ValueError:
        grows_at = math.nan
    if not 0 < grows_at < 1:
        raise ValueError(f"{name}: the share after @ is a number between 0 and 1, such as {pair}@0.6")
    summary = (
        f"the source's size from scratch, grown after {grows_at:.0%} of the steps: width by {width}, depth by {depth}"
    )
    return _define(name, width, depth, "-", summary, grows_at=grows_at)


def _unknown(name: str) -> str:
    near = close_matches(name, METHODS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"no method {name!r}{hint} (known: {', '.join(METHODS)}, or WIDTH/DEPTH of two starts, or WIDTH/DEPTH@SHARE)"


def methods_named(names: Iterable[str]) -> dict[str, Method]:
    """Return the methods with these names; scratch, the baseline, comes first. Raises ValueError."""
    return {name: method_named(name) for name in dict.fromkeys((SCRATCH, *names))}
