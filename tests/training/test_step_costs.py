"""What a step costs: counted from the table alone, and by torch while the library's own model does it.

`FlopCounterMode` counts the matrix products, batched products and convolutions that run. Attention runs by torch's plain kernel, whose two
products it sees; it counts all pairs of tokens, as `flops` does, whether a mask hides half of them or not. Everything is a whole number
on both sides, so nothing is compared with a tolerance: where the two differ, `unlike` says by how much and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.tiny import CASES, TARGETS, config_of, family_of, start_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ligo_convert.families.flops import forward_flops, is_below, partial_step_flops, products, step_flops
from ligo_convert.families.schema import Family
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.new_parameters import added_parts
from ligo_convert.training.drop_hooks import DRAWS, layer_drop, token_drop
from ligo_convert.training.dropping import Dropping, kept_tokens, skipped_layers
from ligo_convert.training.functional_model import LibraryModel
from ligo_convert.training.pretrain import drawn_model
from ligo_convert.training.runs import DRAWN, OptimizerSettings, Run, Stage
from ligo_convert.training.step_costs import Step, run_flops, with_layers
from ligo_convert.training.tasks import on_device, random_batch

COUNT = 3  # examples of a batch
WITH_LOSS = [name for name in CASES if family_of(config_of(name)).task != "encoder"]
TIED = [name for name in WITH_LOSS if family_of(config_of(name)).is_tied(config_of(name))]
# Sliding windows bring a mask for every layer, and tokens cannot leave a mask.
MASKED = ("mistral",)
# Whose sequences hold a class token that the family's positions do not count: what a share of the tokens is, is another number there.
UNCOUNTED = ("deit3", "cait")
Times = Callable[[str | None, int | None], int]


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Operations of what runs meanwhile."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def batch_of(family: Family, config: Mapping[str, object]) -> dict[str, torch.Tensor]:
    found = on_device(random_batch(family, config, count=COUNT), "cpu", torch.float32)
    # Short sequences do: an image's are as long as it has patches.
    return {name: part[:, :12] if part.ndim == 2 else part for name, part in found.items()}


def length_of(family: Family, config: Mapping[str, object]) -> int:
    """Tokens of a sequence as it runs through the layers."""
    beside = 1 if family.complete(config).get("no_embed_class") else 0  # a class token without a position
    return family.sequence(config, 12) + beside


def parameters_of(
    family: Family, config: Mapping[str, object], learns: Callable[[str], bool] = lambda name: True
) -> dict[str, torch.Tensor]:
    """A drawn model, of which the named tensors ask for gradients."""
    drawn = drawn_model(family, config, seed=0)
    return {name: torch.tensor(values).requires_grad_(learns(name)) for name, values in drawn.items()}


def everything(axis: str | None, layer: int | None) -> int:
    return 3


def unlike(family: Family, config: Mapping[str, object], times: Times) -> int:
    """What torch counts more than `flops`, from facts of the models alone.

    Args:
        times: how often what stands at a place is multiplied: forward, for what goes in, for the weights.
    """
    sizes, complete = family.sizes(config), family.complete(config)
    more = 0
    if family.reads == "images":
        # The tokens beside the patches pass every layer, and are cut from no image; and pixels want no gradient.
        patch = 2 * math.prod(
            family.shape(next(row for row in family.rows if "patch_height" in row.layout.streams), sizes)
        )
        patches = (int(str(complete["img_size"])) // sizes["patch_height"]) ** 2
        tokens = length_of(family, config)
        more -= patch * COUNT * ((tokens - patches) * times(None, None) + patches * (times(None, None) == 3))
    if family.name == "cait":
        # Talking heads multiply each pair of tokens, not each token; and class attention looks at the class token, too.
        heads, tokens, width = sizes["heads"], sizes["position"], sizes["embed"]
        talking = 2 * 2 * heads**2 * tokens * (tokens - 1) * COUNT
        keys, pairs = 2 * 2 * width**2 * COUNT, 4 * width * COUNT
        more += sum(talking * times("layer", layer) for layer in range(sizes["layer"]))
        for layer in range(sizes["class_layer"]):
            # Both sides of attention's products pass gradients on, or none.
            passed = times("class_layer", layer)
            more += keys * passed + pairs * (3 if passed > 1 else 1)
    return more


def unasked(family: Family, config: Mapping[str, object], times: int) -> int:
    """What the backward pass of a whole BERT leaves out: the loss of masked tokens reaches neither pooler nor the head above it."""
    length = length_of(family, config)
    found = products(family, config, tokens=COUNT * length, sequence_length=length)
    beside = [one.flops for one in found if one.pattern.startswith(("bert.pooler", "cls.seq_relationship"))]
    assert len(beside) == 2
    return times * sum(beside)


# Everything learns.


@pytest.mark.parametrize("name", CASES)
def test_a_forward_pass_costs_what_torch_counts(name: str) -> None:
    config = config_of(name)
    family = family_of(config)
    model, length = LibraryModel(family, config), length_of(family, config)
    with counting() as counter, torch.no_grad():
        model(parameters_of(family, config, lambda found: False), batch_of(family, config))
    told = forward_flops(family, config, tokens=COUNT * length, sequence_length=length)
    assert counter.get_total_flops() == told + unlike(family, config, lambda axis, layer: 1)


@pytest.mark.parametrize("name", WITH_LOSS)
def test_a_step_costs_what_torch_counts(name: str) -> None:
    config = config_of(name)
    family = family_of(config)
    model, length = LibraryModel(family, config), length_of(family, config)
    with counting() as counter:
        model.loss(parameters_of(family, config), batch_of(family, config)).backward()  # type: ignore[no-untyped-call]
    told = step_flops(family, config, tokens=COUNT * length, sequence_length=length)
    assert told == partial_step_flops(family, config, tokens=COUNT * length, sequence_length=length)
    more = unlike(family, config, everything) - (unasked(family, config, 2) if name == "bert full" else 0)
    assert counter.get_total_flops() == told + more


@pytest.mark.parametrize("length", [2, 7, 12])
def test_attention_grows_with_the_square_of_the_sequence(length: int) -> None:
    """At every length the count is torch's, so that it is the square that is counted and no constant that fits one length."""
    config = config_of("gpt2")
    family = family_of(config)
    batch = {name: part[:, :length] for name, part in batch_of(family, config).items()}
    with counting() as counter:
        LibraryModel(family, config).loss(parameters_of(family, config), batch).backward()  # type: ignore[no-untyped-call]
    assert counter.get_total_flops() == step_flops(family, config, tokens=COUNT * length, sequence_length=length)


# Some of it learns.


def stage_of(config: Mapping[str, object], **settings: Any) -> Stage:
    return Stage(begin=0, config=config, **settings)


def step_of(family: Family, stage: Stage, **more: Any) -> Step:
    length = length_of(family, stage.config)
    return Step(family=family, stage=stage, tokens=COUNT * length, length=length, **more)


def learning(step: Step, height: int) -> Callable[[str], bool]:
    """Which tensors of the sub-model of `height` layers learn, by name."""
    rows = {
        row.name(layer): (row, layer)
        for row in step.family.rows_for(step.stage.config)
        for layer in step.family.layers(row, step.stage.config)
    }
    return lambda name: step.learns(*rows[name], height)


def counted(step: Step, height: int, dropped: tuple[int, ...] = ()) -> int:
    """Operations of one step as torch counts them while the library's model takes it."""
    family, config = step.family, with_layers(step.family, step.stage.config, height)
    axis, batch = family.depth_axes[0], batch_of(family, config)
    model = LibraryModel(family, config)
    with counting() as counter, ExitStack() as stack:
        stack.enter_context(layer_drop(model, axis, dropped))
        if step.dropping.tokens:
            draws = torch.rand((COUNT, step.length), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            stack.enter_context(token_drop(model, axis, step.dropping, {**batch, DRAWS: draws}))
        model.loss(parameters_of(family, config, learning(step, height)), batch).backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops()


def unneeded(family: Family, config: Mapping[str, object], lowest: int) -> int:
    """What the lowest layer that learns need not pass on: where no norm that learns stands before them, for the first products' input."""
    if family.norm.placement == "pre":
        return 0
    length = length_of(family, config)
    found = products(family, config, tokens=COUNT * length, sequence_length=length)
    return sum(
        one.flops
        for one in found
        if one.layer == lowest and any(f".{part}.weight" in one.pattern for part in ("query", "key", "value"))
    )


@pytest.mark.parametrize("height", [2, 4])
@pytest.mark.parametrize("name", WITH_LOSS)
def test_a_step_of_the_top_layers_costs_what_torch_counts(name: str, height: int) -> None:
    """As in the grown stages of MSLT, and in the sub-models of bert2BERT."""
    config = config_of(name, **TARGETS[name]["depth"])
    family = family_of(config)
    step = step_of(family, stage_of(config, trains="top", top=2, submodels=(2, 4)))
    smaller = with_layers(family, config, height)

    def times(axis: str | None, layer: int | None) -> int:
        if axis is None:
            return 1
        assert layer is not None
        return 3 if axis != family.depth_axes[0] or layer >= height - 2 else 1

    more = unlike(family, smaller, times) - unneeded(family, smaller, height - 2)
    if name == "bert full":
        more -= unasked(family, smaller, 2)
    assert counted(step, height) == step.flops(height) + more


@pytest.mark.parametrize("name", WITH_LOSS)
def test_a_step_of_added_layers_costs_what_torch_counts(name: str) -> None:
    """A deeper target whose old layers stay: gradients go down to the lowest new layer, and to no weight that stays."""
    changes = {key: value for key, value in TARGETS[name]["depth"].items() if key != "depth_token_only"}
    start = start_of(name, config_of(name), changes, depth="identity")
    family, config = family_of(start.target), start.target
    parts = added_parts(family, initial_operator(start))
    added = {found for found, part in parts.items() if part.kind != "old"}
    axis = family.depth_axes[0]
    rows = [row for row in family.rows if row.depth == axis]
    found = {(row, layer) for row in rows for layer in family.layers(row, config) if row.name(layer) in added}
    new = {layer for row, layer in found if len(row.layout.dims) > 1}
    lowest, layers = min(layer for _, layer in found if layer is not None), family.sizes(config)[axis]
    length = length_of(family, config)
    step = step_of(family, stage_of(config, trains="added"), added=added)
    assert new < {*range(layers)}, "some layers stay"

    def times(along: str | None, layer: int | None) -> int:
        if along is None:
            return 1
        if along != axis:
            return 2  # the class layers stay, and pass gradients on
        assert layer is not None
        return 1 if layer < lowest else 3 if layer in new else 2

    more = unlike(family, config, times)
    if family.norm.placement == "post":
        # The norm that a silent layer ends with stands, in its new place, at the end of the layer before: no product there need pass on.
        assert lowest < min(new)
        below = products(family, config, tokens=COUNT * length, sequence_length=length)
        more -= sum(one.flops * (1 if one.pattern else 2) for one in below if one.layer == lowest)
    if name == "bert full":
        more -= unasked(family, config, 1)
    assert counted(step, layers) == step.flops(layers) + more
    assert step.flops(layers) < step_flops(family, config, tokens=COUNT * length, sequence_length=length)


# Some of it is left out.


def unheard(step: Step, height: int, dropped: tuple[int, ...]) -> int:
    """The forward pass of layers that are left out: the library runs them, nobody listens, and no cost of the method's is counted."""
    family, config = step.family, with_layers(step.family, step.stage.config, height)
    share = kept_tokens(step.dropping, step.length) / step.length
    skipping = skipped_layers(height)
    return round(
        sum(
            one.flops * (share if one.layer in skipping else 1.0) ** one.power
            for one in products(family, config, tokens=step.tokens, sequence_length=step.length)
            if one.axis == family.depth_axes[0] and one.layer in dropped
        )
    )


@pytest.mark.parametrize("dropped", [(1,), (0, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "bert"])
def test_layers_that_are_dropped_cost_nothing(name: str, dropped: tuple[int, ...]) -> None:
    """No gradient passes them, and their own forward pass is no part of the method."""
    config = config_of(name, **TARGETS[name]["depth"])
    step = step_of(family_of(config), stage_of(config))
    assert counted(step, 5, dropped) == step.flops(5, dropped) + unheard(step, 5, dropped)
    assert step.flops(5) - step.flops(5, dropped) == 3 * unheard(step, 5, dropped) > 0


@pytest.mark.parametrize("tokens", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("name", [name for name in WITH_LOSS if name not in (*MASKED, *UNCOUNTED, "bert full")])
def test_tokens_that_are_dropped_cost_nothing(name: str, tokens: float) -> None:
    """In the middle layers; and attention there costs less by the square."""
    config = config_of(name, **TARGETS[name]["depth"])
    family = family_of(config)
    layers = family.sizes(config)[family.depth_axes[0]]
    assert skipped_layers(layers)
    whole = step_of(family, stage_of(config))
    step = step_of(family, stage_of(config), dropping=Dropping(tokens=tokens))
    assert counted(step, layers) == step.flops(layers) + unlike(family, config, everything)
    # Of an image's few tokens a small share is none.
    assert step.flops(layers) < whole.flops(layers) or int(tokens * step.length) == 0


def test_layers_and_tokens_may_be_dropped_at_once() -> None:
    config = config_of("gpt2", n_layer=6)
    step = step_of(family_of(config), stage_of(config), dropping=Dropping(tokens=0.25))
    for dropped in ((3,), (4,), (5,), (0, 4), (3, 4)):
        assert counted(step, 6, dropped) == step.flops(6, dropped) + unheard(step, 6, dropped)


def test_dropping_goes_with_sub_models_of_which_the_top_learns() -> None:
    config = config_of("gpt2", n_layer=6)
    stage = stage_of(config, trains="top", top=2, submodels=(4, 6))
    step = step_of(family_of(config), stage, dropping=Dropping(tokens=0.25))
    for height in stage.submodels:
        for dropped in ((), (1,), (height - 1,)):
            assert counted(step, height, dropped) == step.flops(height, dropped) + unheard(step, height, dropped)


# Who teaches, and what is meant by the mean.


def test_a_teacher_costs_a_forward_pass_of_its_own() -> None:
    config, deeper = config_of("gpt2"), config_of("gpt2", n_layer=4)
    family = family_of(config)
    alone = step_of(family, stage_of(deeper), teacher=config)
    taught = step_of(family, stage_of(deeper, teacher=True), teacher=config)
    beside = forward_flops(family, config, tokens=alone.tokens, sequence_length=alone.length)
    assert taught.flops(4) - alone.flops(4) == beside > 0


def test_the_mean_is_over_the_sub_models() -> None:
    config = config_of("gpt2", n_layer=4)
    family = family_of(config)
    stage = stage_of(config, trains="top", top=1, submodels=(1, 2, 4))
    step = step_of(family, stage)
    assert step.mean_flops() == sum(step.flops(height) for height in (1, 2, 4)) / 3
    plain = step_of(family, stage_of(config))
    assert plain.mean_flops() == plain.flops(4)
    assert step.mean_flops(late=True) == plain.flops(4)
    twice = step_of(family, stage_of(config, submodels=(1, 4, 4)))
    assert twice.mean_flops() == (twice.flops(1) + 2 * plain.flops(4)) / 3, "a depth that occurs twice counts twice"


def test_a_run_costs_the_sum_of_its_stages() -> None:
    """Until `until`, then late; and up to any step."""
    config, deeper = config_of("gpt2"), config_of("gpt2", n_layer=4)
    family = family_of(config)
    stages = (
        stage_of(config, submodels=(1, 2), trains="top", top=1, until=3),
        replace(stage_of(deeper), begin=5),
    )
    run = Run(
        start=DRAWN,
        stages=stages,
        steps=9,
        warmup=0,
        decay=0,
        optimizer=OptimizerSettings(),
        learning_rate=1.0,
        batch_size=COUNT,
        seed=0,
    )
    first, second = (step_of(family, stage) for stage in stages)
    steps = [*[first.mean_flops()] * 3, *[first.mean_flops(late=True)] * 2, *[second.flops(4)] * 4]
    for done in range(10):
        assert run_flops(family, run, sequence_length=first.length, done=done) == sum(steps[:done])
    assert run_flops(family, run, sequence_length=first.length) == sum(steps)


def test_late_in_a_stage_everything_learns_alone() -> None:
    """After `until`: no sub-model, no teacher, nothing frozen."""
    config = config_of("gpt2", n_layer=4)
    family = family_of(config)
    plain = step_of(family, stage_of(config)).flops(4)
    for stage in (
        stage_of(config, trains="top", top=1, submodels=(2, 4), until=5),
        stage_of(config, teacher=True, until=5),
    ):
        step = step_of(family, stage, teacher=config_of("gpt2"))
        assert step.flops(4, late=True) == plain != step.flops(4)


# What lies below, and the head that is the embedding.


@pytest.mark.parametrize("name", CASES)
def test_what_is_below_the_layers_is_what_their_first_input_depends_on(name: str) -> None:
    """`is_below` asks the table; here the model is asked, by gradients of what its first layer is given."""
    config = config_of(name)
    family = family_of(config)
    model, parameters, given = LibraryModel(family, config), parameters_of(family, config), list[torch.Tensor]()
    first = model.module.get_submodule(model.layers(family.depth_axes[0])[0])
    handle = first.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(parameters, batch_of(family, config))
    handle.remove()
    found = torch.autograd.grad(given[0].square().sum(), list(parameters.values()), allow_unused=True)
    reached = {name for name, gradient in zip(parameters, found, strict=True) if gradient is not None}
    outside = [row for row in family.rows_for(config) if row.depth is None]
    assert reached == {row.pattern for row in outside if is_below(family, row)}
    assert not any(is_below(family, row) for row in family.rows if row.depth is not None)


@pytest.mark.parametrize("name", [name for name in TIED if name != "bert full"])
def test_a_tied_head_stays_with_the_embedding(name: str) -> None:
    """Where the top layers alone learn, the head learns with them; not where it is the embedding, which lies below."""
    change = {**TARGETS[name]["depth"]}
    costs = {}
    for tied in (True, False):
        config = config_of(name, tied=tied, **change)
        step = step_of(family_of(config), stage_of(config, trains="top", top=2))
        costs[tied] = step.flops(5)
        assert counted(step, 5) == costs[tied] - unneeded(step.family, config, 3)
    family = family_of(config)
    head = [
        found
        for found in products(family, config, tokens=step.tokens, sequence_length=step.length)
        if found.pattern in family.tied
    ]
    assert len(head) == 1
    assert costs[False] - costs[True] == head[0].flops
