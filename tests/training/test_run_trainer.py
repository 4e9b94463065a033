"""A run on tiny real models: it trains what its stages say, from where they say, and can be cut and stopped anywhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import CASES, TARGETS, config_of, empty_model, family_of, model_of, state_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ligo_convert.comparison.strategies import STRATEGIES, Part
from ligo_convert.data.examples import IGNORED, ArrayExamples, DataSplits, Examples
from ligo_convert.data.masking import MaskedExamples, Masking
from ligo_convert.errors import RecipeError
from ligo_convert.families.flops import forward_flops
from ligo_convert.families.notation import size_keys
from ligo_convert.families.schema import Family
from ligo_convert.growth.state_maps import POLICIES
from ligo_convert.training.drop_hooks import DRAWS, layer_drop, token_drop
from ligo_convert.training.dropping import NOTHING, Dropping, dropped_layers, kept_tokens, skipped_layers
from ligo_convert.training.functional_model import LibraryModel, mean_loss
from ligo_convert.training.loop import StateStore
from ligo_convert.training.optimizers import parameter_groups
from ligo_convert.training.pretrain import drawn_model
from ligo_convert.training.run_trainer import (
    TEMPERATURE,
    RunState,
    Teacher,
    Tensors,
    TrainSetup,
    begin_stage,
    drawn_state,
    growth_plan_of,
    train_segment,
)
from ligo_convert.training.runs import (
    DRAWN,
    Growth,
    OptimizerSettings,
    PlannedStage,
    Run,
    Stage,
    stages_of,
)
from ligo_convert.training.state import FolderState
from ligo_convert.training.step_costs import Step, run_flops, with_layers
from ligo_convert.training.tasks import on_device

VOCABULARY, LENGTH, BATCH = 29, 10, 4
STEPS = 15
DEEP: Mapping[str, Mapping[str, object]] = {
    "gpt2": {"n_layer": 4},
    "bert": {"num_hidden_layers": 4},
    "llama": {"num_hidden_layers": 4},
    "vit": {"depth": 4},
    "cait": {"depth": 4},
}
ADAMW, MUON = OptimizerSettings(), OptimizerSettings(name="muon")
WIDER = {"n_embd": 24, "n_head": 3, "n_layer": 4}


class Stop(Exception):
    pass


# What runs share.


@cache
def slices_of(name: str) -> DataSplits:
    """Sequences that count up modulo the vocabulary, masked or as classes of images: something to learn."""
    rng = np.random.default_rng(0)
    blocks = ((rng.integers(0, 25, size=(40, 1)) + np.arange(LENGTH)) % 25 + 2).astype(np.uint32)
    parts: dict[str, Examples] = {}
    for part, rows in {"train": blocks[:24], "validation": blocks[24:32], "test": blocks[32:]}.items():
        task = family_of(config_of(name)).task
        if task == "image-classification":
            pixels = np.stack([np.random.default_rng(int(row[0]) % 5).normal(size=(3, 16, 16)) for row in rows])
            arrays = {"pixel_values": pixels.astype(np.float32), "labels": rows[:, 0].astype(np.int64) % 5}
            parts[part] = ArrayExamples(arrays=arrays)
        elif task == "masked-lm":
            parts[part] = MaskedExamples(
                blocks=rows,
                masking=Masking(seed=0),
                name=part,
                mask_id=1,
                special=(0, 1),
                vocabulary=VOCABULARY,
            )
        else:
            parts[part] = ArrayExamples(arrays={"input_ids": rows.astype(np.int64)})
    return DataSplits(**parts, digest="", sizes={}, unit="tokens")


def setup_of(name: str = "gpt2", **changes: Any) -> TrainSetup:
    family = family_of(config_of(name))
    found: dict[str, Any] = {
        "family": family,
        "slices": slices_of(name),
        "micro_batch_size": BATCH,
        "sequence_length": family.sequence(config_of(name), LENGTH),
        "evaluate_every": 4,
        "examples": slices_of(name).test,
        "device": "cpu",
        "autocast": False,
    }
    return TrainSetup(**{**found, **changes})


def planned_of(family: Family, target: Mapping[str, object], parts: Iterable[Part]) -> tuple[PlannedStage, ...]:
    """The parts of a strategy as stages, from drawn weights; layers that come are copies as the part says."""
    axis, found, current = family.depth_axes[0], list[PlannedStage](), dict[str, object]()
    for part in parts:
        wanted, more = with_layers(family, target, part.layers), dict[str, Any]()
        if current and family.sizes(current)[axis] != family.sizes(wanted)[axis]:
            key = size_keys(family.axes[axis])[0]
            growth, asked = Growth(width="copy", depth=part.depth, state=part.state), {key: wanted[key]}
            wanted = dict(growth_plan_of(family, growth, current, asked, where="test").target)
            more = {"growth": growth, "asked": asked, "warmup": 2 if part.warms else 0}
        stage = Stage(
            begin=0,
            config=wanted,
            trains=part.trains,
            top=part.top,
            submodels=part.submodels,
            teacher=part.teacher,
            **more,
        )
        found.append(PlannedStage(at=part.at, stage=stage, until_share=part.until_share))
        current = wanted
    return tuple(found)


def grown_from_source(**changes: Any) -> tuple[PlannedStage, ...]:
    """A first stage that grows a source in width and depth, and then trains what growth added."""
    growth = Growth(width="lemon", depth="identity", state="reset")
    asked = {**WIDER, **changes}
    target = growth_plan_of(family_of(config_of("gpt2")), growth, config_of("gpt2"), asked, where="test").target
    return (PlannedStage(at=0, stage=Stage(begin=0, config=target, growth=growth, asked=asked, trains="added")),)


def run_of(name: str = "gpt2", strategy: str = "plain", /, **changes: Any) -> Run:
    config = changes.pop("config", None) or config_of(name, **DEEP[name])
    family, steps = family_of(config), changes.get("steps", STEPS)
    if strategy == "added-only" and "stages" not in changes:
        changes = {"start": "source", "stages": stages_of(grown_from_source(), steps), **changes}
    parts = STRATEGIES[strategy].parts(family.sizes(config)[family.depth_axes[0]])
    found: dict[str, Any] = {
        "start": DRAWN,
        "stages": changes.get("stages") or stages_of(planned_of(family, config, parts), steps),
        "steps": steps,
        "warmup": 2,
        "decay": steps // 5,
        "optimizer": ADAMW,
        "learning_rate": 3e-3,
        "batch_size": BATCH,
        "seed": 0,
    }
    return Run(**{**found, **changes})


@cache
def source_of(name: str = "gpt2") -> Mapping[str, torch.Tensor]:
    model = model_of(config_of(name), dtype=torch.float32)
    return {found: tensor.detach() for found, tensor in model.named_parameters()}


def teacher_of(name: str = "gpt2") -> Teacher:
    config = config_of(name)
    return Teacher(model=LibraryModel(family_of(config), config), parameters=dict(source_of(name)), config=config)


def beginning(run: Run, setup: TrainSetup) -> RunState:
    """The state before the first step: drawn weights, or the source of `source_of`."""
    if run.start == DRAWN:
        return drawn_state(setup.family, run.stages[0].config, seed=run.seed, device="cpu")
    return RunState(config=config_of("gpt2"), tensors=dict(source_of()), moments={})


Stores = Callable[[int], StateStore | None]

OnStep = Callable[[int, dict[str, Any]], None]


def nowhere(end: int) -> None:
    return None


def trained(
    run: Run,
    setup: TrainSetup | None = None,
    *,
    name: str = "gpt2",
    cuts: Iterable[int] = (),
    begin: tuple[int, RunState] | None = None,
    until: int | None = None,
    store: Stores = nowhere,
    on_step: OnStep | None = None,
) -> tuple[list[dict[str, float]], RunState]:
    """Train a run segment by segment, from its beginning or from the state after some steps, as the jobs of a comparison do."""
    setup = setup or setup_of(name)
    teacher = teacher_of(name) if any(stage.teacher for stage in run.stages) else None
    first, state = begin or (0, beginning(run, setup))
    points = []
    until = until or run.steps
    for end in sorted(step for step in {*run.breaks, *cuts, until} if first < step <= until):
        stage = run.stage_at(first)
        if stage.begin == first:
            state = begin_stage(setup.family, state, stage, device="cpu")
        found, state = train_segment(
            setup, run, state, range(first, end), teacher=teacher, store=store(end), on_step=on_step
        )
        # A segment hands on no more than what is stored.
        state = RunState.read(*state.arrays(), device="cpu")
        points += found
        first = end
    return points, state


def same(found: RunState, wanted: RunState) -> None:
    """Bit for bit: weights, the optimizer's state, costs."""
    assert dict(found.config) == dict(wanted.config)
    arrays, text = found.arrays()
    others, other = wanted.arrays()
    assert arrays.keys() == others.keys()
    assert not [name for name in arrays if not np.array_equal(arrays[name], others[name])]
    assert json.loads(text) == json.loads(other)


def folder(path: Path) -> Stores:
    return lambda end: FolderState(path / f"{end}.safetensors", owner="", warn=print)


class Every:
    """A state store in memory that keeps every state it is given, by steps done."""

    def __init__(self) -> None:
        self.states: dict[int, tuple[dict[str, np.ndarray], dict[str, Any]]] = {}

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        data = json.loads(text)
        self.states[data["step"]] = ({name: array.copy() for name, array in arrays.items()}, data)

    def load(self) -> None:
        return None

    def discard(self, why: str) -> None:
        raise AssertionError(why)

    def changed(self, step: int) -> set[str]:
        """The parameters that the step to `step` has moved."""
        before, now = self.parameters(step - 1), self.parameters(step)
        return {name for name in now if not torch.equal(now[name], before[name])}

    def parameters(self, step: int) -> Tensors:
        arrays = self.states[step][0]
        named = {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith("parameter/")}
        return {name: torch.from_numpy(array) for name, array in named.items()}


def until(end: int, flops: dict[int, float]) -> OnStep:
    """Notes what has been spent by step, and stops after step `end`."""

    def told(step: int, line: dict[str, Any]) -> None:
        flops[step] = line["flops"]
        if step == end:
            raise Stop

    return told


def noted(flops: dict[int, float]) -> OnStep:
    return until(-1, flops)


@pytest.fixture
def save_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ligo_convert.training.loop.SAVE_EVERY_SECONDS", -1.0)


# --- plain training ---------------------------------------------------------------------------------------------------


def library_loss(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The library's own loss, where it has one."""
    if "pixel_values" in batch:
        return torch.nn.functional.cross_entropy(model(batch["pixel_values"]), batch["labels"])
    found: torch.Tensor = model(input_ids=batch["input_ids"], labels=batch.get("labels", batch["input_ids"])).loss
    return found


@pytest.mark.parametrize("name", ["gpt2", "bert", "cait"])
@pytest.mark.parametrize("shape", ["stable", "cosine"])
def test_plain_training_is_what_anyone_would_write(name: str, shape: str) -> None:
    """The library's model built the ordinary way, its own loss, torch's AdamW and clipping, a rate written out by hand."""
    run, setup = run_of(name, shape=shape), setup_of(name)
    points, state = trained(run, setup)
    config = run.stages[0].config
    model = empty_model(config)
    drawn = drawn_model(setup.family, config, seed=0)
    own = dict(model.named_parameters())
    assert set(own) == set(drawn)
    with torch.no_grad():
        for found, values in drawn.items():
            own[found].copy_(torch.tensor(values))
    optimizer = torch.optim.AdamW(
        [
            {"params": [part for part in own.values() if part.ndim > 1], "weight_decay": 0.1},
            {"params": [part for part in own.values() if part.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )

    def measured() -> float:
        batch = on_device(setup.examples.take(range(len(setup.examples))), "cpu", torch.float32)
        with torch.no_grad():
            return float(library_loss(model, batch))

    losses = {0: measured()}
    for step in range(STEPS):
        if shape == "cosine":
            factor = 0.5 * (1 + np.cos(np.pi * (step - 2) / (STEPS - 2)))
        else:
            # Twelve steps at the peak, then three quarters, a half, a quarter.
            factor = min(1.0, (STEPS - step) / 4)
        rate = 3e-3 * ((step + 1) / 2 if step < 2 else factor)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = on_device(setup.slices.batch(step, batch_size=BATCH, seed=0), "cpu", torch.float32)
        optimizer.zero_grad()
        library_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses[step + 1] = measured()
    assert [point["step"] for point in points] == [0, 4, 8, 12, STEPS]
    # Adam divides by the root of a second moment, so that float32's last bits (a fused kernel, another order of sums) are seen at 1e-6.
    assert [point["loss"] for point in points] == pytest.approx(
        [losses[int(point["step"])] for point in points], abs=1e-5
    )
    for found, tensor in own.items():
        torch.testing.assert_close(state.tensors[found], tensor.detach(), rtol=0, atol=1e-5, msg=found)


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=lambda found: found.name)
def test_training_learns(optimizer: OptimizerSettings) -> None:
    points, _ = trained(run_of(steps=60, optimizer=optimizer))
    assert points[-1]["loss"] < points[0]["loss"] - 0.3


# --- cut, stopped and gone on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=lambda found: found.name)
@pytest.mark.parametrize("strategy", ["plain", "stacking", "two-stage", "added-only", "late"])
def test_a_run_in_pieces_is_the_run_in_one_piece(strategy: str, optimizer: OptimizerSettings) -> None:
    """Any cut: states are handed on as they are stored."""
    run = run_of("gpt2", strategy, steps=10, optimizer=optimizer, dropping=Dropping(layers=0.5, tokens=0.3, steps=10))
    points, state = trained(run)
    for cuts in (range(1, 10),):
        again, pieces = trained(run, cuts=cuts)
        same(pieces, state)
        assert again == points


@pytest.mark.parametrize("name", DEEP)
def test_a_run_in_pieces_is_the_run_in_one_piece_in_every_family(name: str) -> None:
    run = run_of(name, "late", steps=6, optimizer=MUON)
    _, state = trained(run, name=name)
    _, pieces = trained(run, name=name, cuts=range(1, 6))
    same(pieces, state)


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=lambda found: found.name)
def test_a_decay_branch_is_the_run_trained_straight(optimizer: OptimizerSettings) -> None:
    """Runs of 8, 12 and 20 steps from one trunk at a constant rate, each with the decay of its own end."""
    runs = [run_of(steps=steps, decay=steps // 4, optimizer=optimizer) for steps in (8, 12, 20)]
    trunk = runs[-1]
    for run in runs:
        assert run.history(run.turn) == trunk.history(run.turn)
        _, straight = trained(run)
        _, leaving = trained(trunk, until=run.turn, cuts=(3,))
        _, branch = trained(run, begin=(run.turn, leaving))
        same(branch, straight)


@pytest.mark.parametrize("often", [True, False], ids=["saved every step", "saved at the end of a segment"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.slow
def test_a_run_that_is_stopped_ends_with_the_same_bits(
    strategy: str, often: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of each stage, and between two; the curve and its costs are the same, too."""
    run = run_of("gpt2", strategy)
    points, state = trained(run)
    stops = {(span.start + span.stop + 1) // 2 for span in run.spans}
    if often:
        monkeypatch.setattr("ligo_convert.training.loop.SAVE_EVERY_SECONDS", -1.0)
    else:
        # What has been done of a segment since its beginning is done again.
        stops = {max(stops), run.spans[0].stop}
    for number, at in enumerate(sorted(stops)):
        store = folder(tmp_path / f"{number}")
        with pytest.raises(Stop):
            trained(run, store=store, on_step=until(at, {}))
        again, resumed = trained(run, store=store)
        assert again == points, at
        same(resumed, state)


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=lambda found: found.name)
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(
    optimizer: OptimizerSettings, tmp_path: Path, save_often: None
) -> None:
    run, store = run_of("gpt2", "stacking", steps=6, optimizer=optimizer), folder(tmp_path)
    points, state = trained(run)
    count = 0

    def stop(step: int, line: dict[str, Any]) -> None:
        raise Stop

    while True:
        try:
            again, resumed = trained(run, store=store, on_step=stop)
            break
        except Stop:
            count += 1
    assert count == 6, "each try takes one step"
    assert again == points
    same(resumed, state)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run = run_of("gpt2", "stacking")
    points, state = trained(run, store=folder(tmp_path))

    def never(step: int, line: dict[str, Any]) -> None:
        raise AssertionError("a step was taken")

    again, resumed = trained(run, store=folder(tmp_path), on_step=never)
    assert again == points
    same(resumed, state)


# --- stages -----------------------------------------------------------------------------------------------------------


def layer_of(family: Family, config: Mapping[str, object]) -> dict[str, int | None]:
    """Every tensor with its layer of the first depth axis."""
    axis = family.depth_axes[0]
    return {
        row.name(layer): layer if row.depth == axis else None
        for row in family.rows_for(config)
        for layer in family.layers(row, config)
    }


def test_layers_that_are_frozen_do_not_change() -> None:
    """MSLT: in the grown stages what lies below the new layers stays bit for bit; they, and what lies above, learn; in the end all does."""
    run, setup = run_of("gpt2", "layerwise"), setup_of()
    heights = [setup.family.sizes(stage.config)["layer"] for stage in run.stages]
    assert heights == [1, 2, 3, 4, 4]
    _, state = trained(run, until=run.spans[0].stop)
    for number, (stage, span) in enumerate(zip(run.stages[1:-1], run.spans[1:-1], strict=True), start=1):
        before = begin_stage(setup.family, state, stage, device="cpu").tensors
        _, state = trained(run, begin=(span.start, state), until=span.stop)
        for name, layer in layer_of(setup.family, stage.config).items():
            learns = layer == heights[number] - 1 or name.startswith("transformer.ln_f")
            assert torch.equal(state.tensors[name], before[name]) != learns, (number, name)
    _, last = trained(run, begin=(run.spans[-1].start, state))
    assert not any(torch.equal(last.tensors[name], state.tensors[name]) for name in last.tensors)


@pytest.mark.parametrize(
    ("strategy", "taken"),
    [
        ("stacking", [0, 1, 0, 0, 1, 0]),
        ("layerwise", [0, 1, 1, 1, 1, 1]),
        ("midas", [0, 0, 0, 0, 0, 1]),
        ("early-stack", [0, 1, 0, 1, 0, 1]),
    ],
)
@pytest.mark.parametrize("name", ["gpt2", "bert", "cait"])
def test_new_layers_are_copies(name: str, strategy: str, taken: list[int]) -> None:
    """At a rate of zero nothing moves, and what is left is which layer came from which: heights 2, 3, 6, and 2, 3, 5, 6."""
    key = next(iter(DEEP[name]))
    config = config_of(name, **{key: 6})
    family = family_of(config)
    run = run_of(name, strategy, config=config, learning_rate=0.0)
    state = beginning(run, setup_of(name))
    for stage in run.stages:
        state = begin_stage(family, state, stage, device="cpu")
    drawn = drawn_model(family, with_layers(family, config, 2), seed=0)
    for row in family.rows_for(config):
        for layer in family.layers(row, config):
            old = taken[layer] if row.depth == family.depth_axes[0] and layer is not None else layer
            found = state.tensors[row.name(layer)].numpy()
            # Growth multiplies and divides by a LayerScale.
            assert np.allclose(found, drawn[row.name(old)], rtol=1e-6, atol=0), row.name(layer)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=lambda found: found.name)
def test_growth_between_stages_keeps_the_function_and_the_optimizers_state_by_its_policy(
    policy: str, optimizer: OptimizerSettings
) -> None:
    """A source-sized model grows wider and deeper by exact maps at step 6."""
    growth = Growth(width="lemon", depth="identity", state=policy)
    setup, small = setup_of(), config_of("gpt2")
    target = growth_plan_of(setup.family, growth, small, WIDER, where="test").target
    stages = (
        Stage(begin=0, config=small),
        Stage(begin=6, config=target, growth=growth, asked=WIDER),
    )
    run = run_of(stages=stages, steps=12, optimizer=optimizer)
    _, before = trained(run, until=6)
    after = begin_stage(setup.family, before, run.stages[1], device="cpu")

    def measured(state: RunState, config: Mapping[str, object]) -> float:
        loss = LibraryModel(setup.family, config).loss
        return mean_loss(loss, state.tensors, setup.examples, batch_size=BATCH, device="cpu", dtype=torch.float32)

    loss = measured(after, target)
    # Growth is exact to float32's rounding.
    assert loss == pytest.approx(measured(before, small), abs=1e-5)
    old = {name: state for name, state in after.moments.items() if name in before.moments}
    new_layers = {name for name in after.tensors if name.startswith(("transformer.h.1.", "transformer.h.3."))}
    if policy == "reset":
        assert not after.moments
    else:
        assert old
        steps = {float(state["step"]) for state in old.values() if "step" in state}
        assert steps == {6.0}
    if policy == "carry":
        # Layers 0 and 2 continue the source's two: the first sixteen channels keep what they had.
        for name, kind in (("transformer.wte.weight", "exp_avg"), ("transformer.ln_f.bias", "exp_avg")):
            part = after.moments[name][kind][..., :16]
            assert torch.equal(part, before.moments[name][kind]), name
        assert not new_layers & after.moments.keys()
        matrix = "momentum_buffer" if optimizer.name == "muon" else "exp_avg"
        kept = after.moments["transformer.h.2.mlp.c_fc.weight"][matrix][:16, :64]
        assert torch.equal(kept, before.moments["transformer.h.1.mlp.c_fc.weight"][matrix])
    points, _ = trained(run, begin=(6, before))
    assert points[-1]["loss"] < loss


def test_muon_takes_the_matrices_inside_the_layers_alone() -> None:
    """Embeddings, head, vectors and tensors of three dims stay with AdamW; so is it stored."""
    for name in DEEP:
        config = config_of(name, **DEEP[name])
        family = family_of(config)
        drawn = drawn_model(family, config, seed=0)
        parameters = {found: torch.nn.Parameter(torch.tensor(values)) for found, values in drawn.items()}
        groups = parameter_groups(family, config, parameters, MUON, learning_rate=1.0)
        inside = {
            row.name(layer) for row in family.rows_for(config) if row.depth for layer in family.layers(row, config)
        }
        wanted = {found for found, part in parameters.items() if found in inside and part.ndim == 2}
        by_rule = {group.rule: group for group in groups if group.name == "hidden"}
        assert set(by_rule["muon"].parameters) == wanted
        assert len(wanted) >= 16, "every matrix of four layers"
        assert all(group.rule == "adamw" for group in groups if group.name != "hidden")
        named_once = [found for group in groups for found in group.parameters]
        assert sorted(named_once) == sorted(parameters)
        vectors = {found for group in groups if not group.weight_decay for found in group.parameters}
        assert vectors == {found for found, part in parameters.items() if part.ndim == 1}
        plain = parameter_groups(family, config, parameters, ADAMW, learning_rate=1.0)
        assert {group.rule for group in plain} == {"adamw"}
    run = run_of(steps=6, optimizer=MUON)
    _, state = trained(run, until=3)
    kinds = {name: set(found) for name, found in state.moments.items()}
    assert kinds["transformer.h.0.attn.c_attn.weight"] == {"momentum_buffer"}
    assert kinds["transformer.wte.weight"] == kinds["transformer.h.0.ln_1.weight"] == {"exp_avg", "exp_avg_sq", "step"}


def test_in_the_first_of_two_stages_the_top_of_a_drawn_sub_model_learns(save_often: None) -> None:
    """Step by step: one layer of four, the final norm, and nothing else; every sub-model comes, and costs what it costs."""
    run, store, flops = run_of("gpt2", "two-stage", steps=160), Every(), {0: 0.0}
    with pytest.raises(Stop):
        trained(run, store=lambda end: store, on_step=until(22, flops))
    (stage,) = run.stages
    assert stage.until == 20
    family = family_of(stage.config)
    layers = layer_of(family, stage.config)
    learning = {name for name, layer in layers.items() if layer is not None or name.startswith("transformer.ln_f")}
    assert store.parameters(1).keys() == layers.keys()
    step = Step(family=family, stage=stage, tokens=BATCH * LENGTH, length=LENGTH)
    seen = set()
    for at in range(2, 21):
        changed = store.changed(at)
        tops = {layers[name] for name in changed} - {None}
        assert len(tops) == 1
        top = tops.pop()
        assert top is not None
        seen.add(top)
        # The embedding, which is the head, is below.
        assert changed == {name for name in learning if layers[name] in (None, top)}
        assert flops[at] - flops[at - 1] == step.flops(top + 1)
    assert seen == {0, 1, 2, 3}
    for at in (21, 22):
        assert store.changed(at) == layers.keys()
        assert flops[at] - flops[at - 1] == step.flops(4, late=True)


def test_old_entries_stay_and_new_ones_learn() -> None:
    run, setup = run_of("gpt2", "added-only"), setup_of()
    start = begin_stage(setup.family, beginning(run, setup), run.stages[0], device="cpu")
    _, state = trained(run)
    kinds = set()
    for name, tensor in start.tensors.items():
        new = torch.from_numpy(start.added[name])
        kinds.add("new" if new.all() else "mixed" if new.any() else "old")
        assert torch.equal(state.tensors[name][~new], tensor[~new]), name
        assert not new.any() or not torch.equal(state.tensors[name][new], tensor[new]), name
    assert kinds == {"new", "mixed"}


def test_whole_tensors_that_are_old_stay() -> None:
    """Deeper alone: old layers, embedding and final norm are the source's, bit for bit."""
    stages = stages_of(grown_from_source(n_embd=16, n_head=2), STEPS)
    run, setup = run_of("gpt2", "added-only", stages=stages, start="source"), setup_of()
    start = begin_stage(setup.family, beginning(run, setup), run.stages[0], device="cpu")
    _, state = trained(run)
    stayed = {name for name, tensor in start.tensors.items() if torch.equal(state.tensors[name], tensor)}
    assert stayed == {name for name, mask in start.added.items() if not mask.any()}
    assert {"transformer.wte.weight", "transformer.ln_f.weight"} < stayed


# --- a teacher --------------------------------------------------------------------------------------------------------


def divergence(student: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """4 KL(teacher || student) at temperature 2, written out; a mean over tokens."""
    assert TEMPERATURE == 2.0
    given, own = (found.double() / 2 for found in (other, student))
    chance = given.exp() / given.exp().sum(-1, keepdim=True)
    log = own - own.exp().sum(-1, keepdim=True).log()
    return 4 * (chance * (chance.log() - log)).sum(-1).mean()


def losses_at(name: str, run: Run, parameters: Mapping[str, torch.Tensor], step: int):
    """Own loss and divergence of a model of the library at these parameters, on the batch of a step."""
    model, teacher = empty_model(run.stages[0].config), model_of(config_of(name), dtype=torch.float32)
    with torch.no_grad():
        for found, tensor in model.named_parameters():
            tensor.copy_(parameters[found])
    batch = on_device(slices_of(name).batch(step, batch_size=BATCH, seed=0), "cpu", torch.float32)
    student = model(input_ids=batch["input_ids"]).logits
    with torch.no_grad():
        other = teacher(input_ids=batch["input_ids"]).logits
    labels = batch.get("labels")
    if labels is not None:
        asked = labels != IGNORED
        student_asked, other = student[asked], other[asked]
        own = torch.nn.functional.cross_entropy(student_asked, labels[asked])
        return model, own, divergence(student_asked, other)
    own = torch.nn.functional.cross_entropy(student[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())
    return model, own, divergence(student, other)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_a_wholly_taught_step_learns_from_the_teacher_alone(name: str, save_often: None) -> None:
    """The gradient of the first step is that of the divergence: Adam's first moment is a tenth of it after one step."""
    run, store = run_of(name, "inherit"), Every()
    trained(run, name=name, store=lambda end: store)
    config = run.stages[0].config
    drawn = {found: torch.tensor(values) for found, values in drawn_model(family_of(config), config, seed=0).items()}
    model, _, taught = losses_at(name, run, drawn, 0)
    taught.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    arrays, _ = store.states[1]
    for found, parameter in model.named_parameters():
        assert parameter.grad is not None
        # float32 sums in another order; gradients here are at most one.
        np.testing.assert_allclose(
            arrays[f"first/{found}"], 0.1 * parameter.grad.numpy(), rtol=1e-4, atol=1e-7, err_msg=found
        )


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_teachers_weight_falls_from_one_to_zero(name: str, save_often: None) -> None:
    """The loss that each step tells is (1 - w) own + w taught at that step's parameters, w = 1, 7/8, ..., 1/8, and then 0."""
    run, store, told = run_of(name, "inherit", steps=16), Every(), dict[int, float]()
    trained(
        run,
        setup_of(name, evaluate_every=1),
        name=name,
        store=lambda end: store,
        on_step=lambda step, line: told.update({step: line["loss"]}),
    )
    assert run.stages[0].until == 8
    for step in range(1, 16):
        _, own, taught = losses_at(name, run, store.parameters(step), step)
        weight = max(0.0, 1 - step / 8)
        wanted = (1 - weight) * own + weight * taught
        # What is told is rounded to six digits behind the point, of float32 sums.
        assert told[step + 1] == pytest.approx(float(wanted.detach()), rel=2e-6, abs=2e-6), step


# --- what is left out -------------------------------------------------------------------------------------------------


def batch_of(name: str, count: int = 3, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return on_device(slices_of(name).train.take(range(count), draw=1), "cpu", dtype)


WITH_LAYERS = [name for name in CASES if family_of(config_of(name)).task != "encoder"]


@pytest.mark.parametrize("dropped", [(0,), (1, 3)])
@pytest.mark.parametrize("name", WITH_LAYERS)
def test_a_model_without_layers_is_the_model_that_never_had_them(name: str, dropped: tuple[int, ...]) -> None:
    """The logits are those of the library's smaller model, with the layers that are left."""
    key = next(iter(TARGETS[name]["depth"]))
    whole, smaller = (config_of(name, **{key: layers}) for layers in (4, 4 - len(dropped)))
    family, batch = family_of(whole), batch_of(name)
    axis, model = family.depth_axes[0], LibraryModel(family, whole)
    parameters = state_of(whole, model_of(whole))
    left = [layer for layer in range(4) if layer not in dropped]
    kept = {
        row.name(layer): parameters[row.name(left[layer] if row.depth == axis and layer is not None else layer)]
        for row in family.rows_for(smaller)
        for layer in family.layers(row, smaller)
    }
    with torch.no_grad():
        with layer_drop(model, axis, dropped):
            found = model(parameters, batch)
        wanted = LibraryModel(family, smaller)(kept, batch)
        assert torch.equal(found, wanted)
        assert not torch.equal(model(parameters, batch), found), "afterwards every layer is there again"


def test_sub_models_go_with_dropped_layers() -> None:
    """`bert2bert+layer-drop`: a layer above the drawn sub-model may be among those that are dropped."""
    run = run_of("gpt2", "two-stage", dropping=Dropping(layers=0.9, steps=160), steps=160)
    with pytest.raises(Stop):
        trained(run, on_step=until(20, {}))


def test_layers_are_there_again_after_a_failure() -> None:
    config = config_of("gpt2", n_layer=4)
    model, parameters = LibraryModel(family_of(config), config), state_of(config, model_of(config))
    with torch.no_grad():
        before = model(parameters, batch_of("gpt2"))
        with pytest.raises(Stop), layer_drop(model, "layer", (0, 2)):
            raise Stop
        with pytest.raises(Stop), token_drop(model, "layer", Dropping(tokens=0.5), {}):
            raise Stop
        assert torch.equal(model(parameters, batch_of("gpt2")), before)


def test_a_layer_that_is_dropped_does_not_learn(save_often: None) -> None:
    """And whatever is dropped, the parameters of a step are moved by what was there alone."""
    run, store, flops = run_of(dropping=Dropping(layers=0.9, steps=30), steps=30), Every(), dict[int, float]()
    trained(run, store=lambda end: store, on_step=noted(flops))
    (stage,) = run.stages
    family = family_of(stage.config)
    layers = layer_of(family, stage.config)
    step = Step(family=family, stage=stage, tokens=BATCH * LENGTH, length=LENGTH)
    seen = set()
    # The first step of a segment is compared with a state that no store has seen.
    for at in (at for at in range(2, 31) if at - 1 in store.states):
        dropped = {0, 1, 2, 3} - {layers[name] for name in store.changed(at)}
        seen.add(tuple(sorted(dropped)))
        assert flops[at] - flops[at - 1] == step.flops(4, tuple(dropped))
    assert len(seen) > 3


def drawn(batch: Mapping[str, torch.Tensor], length: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with the draws by which its tokens leave."""
    count = len(next(iter(batch.values())))
    return {
        **batch,
        DRAWS: torch.rand((count, length), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
    }


def middle_of(name: str, model: torch.nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The middle layer of a library's model, run on some tokens alone; given where they stood."""
    layer = LibraryModel(family_of(config_of(name)), config_of(name, **DEEP[name]))
    module: Any = model.get_submodule(layer.layers(layer.family.depth_axes[0])[2])
    if name != "llama":
        return lambda states, rows: _states(module(states))
    rotary: Any = model.get_submodule("model.rotary_emb")
    return lambda states, rows: _states(module(states, position_embeddings=rotary(states, rows)))


def _states(found: Any) -> torch.Tensor:
    return found[0] if isinstance(found, tuple) else found


class Watched:
    """What every layer of a model is given and puts out."""

    def __init__(self, model: LibraryModel) -> None:
        self.given: list[torch.Tensor] = []
        self.out: list[torch.Tensor] = []
        for name in model.layers(model.family.depth_axes[0]):
            module = model.module.get_submodule(name)
            # The module's own code, not its hooks: what is given to it once tokens have left.
            inner = type(module).forward.__get__(module)

            def watch(*args: Any, inner: Any = inner, **kwargs: Any) -> Any:
                self.given.append(args[0])
                found = inner(*args, **kwargs)
                self.out.append(_states(found))
                return found

            module.forward = watch  # type: ignore[method-assign]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("name", DEEP)
def test_tokens_that_stay_are_alone_in_the_middle_and_the_others_come_back_as_they_left(
    name: str, share: float
) -> None:
    """Four layers, of which the third is the middle; its input, its output and what the last is given, built by hand."""
    config = config_of(name, **DEEP[name])
    family, library = family_of(config), model_of(config)
    model, batch, parameters = LibraryModel(family, config), batch_of(name), state_of(config, library)
    length = family.sequence(config, LENGTH)
    assert list(skipped_layers(4)) == [2]
    plain = Watched(model)
    with torch.no_grad():
        whole = model(parameters, batch)
        seen = Watched(model)
        with token_drop(model, family.depth_axes[0], Dropping(tokens=share), drawn(batch, length)):
            model(parameters, batch)
        assert all(torch.equal(seen.out[layer], plain.out[layer]) for layer in (0, 1)), (
            "below the middle nothing is left out"
        )
        before, taken = seen.out[1], seen.given[2]
        kept = kept_tokens(Dropping(tokens=share), before.shape[1])
        assert taken.shape == (3, kept, before.shape[2])
        # Which tokens stayed is told by what they are: no two tokens of a sequence have the same state.
        alike = (before[:, None] == taken[:, :, None]).all(-1)
        assert (alike.sum(-1) == 1).all()
        rows = alike.int().argmax(-1)
        assert (rows.diff(dim=1) > 0).all(), "in their order"
        assert (rows[:, 0] == 0).all(), "the first stays"
        alone = middle_of(name, library)(taken, rows)
        # The same arithmetic in the library's own modules: equal but for the last bits of another batch of sums.
        torch.testing.assert_close(seen.out[2], alone, rtol=1e-12, atol=1e-12)
        back = before.clone()
        for row in range(3):
            back[row, rows[row]] = seen.out[2][row]
        assert torch.equal(seen.given[3], back)
        assert torch.equal(model(parameters, batch), whole), "afterwards every token is there again"


def kept_rows(labels: torch.Tensor, share: float, *, steps: int) -> list[torch.Tensor]:
    """Which tokens the middle layer of a BERT is given, by step: told by their states, of which no two are alike."""
    config = config_of("bert", num_hidden_layers=4)
    model, parameters = LibraryModel(family_of(config), config), state_of(config, model_of(config))
    draw = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(2, VOCABULARY, labels.shape, generator=draw), "labels": labels}
    found = []
    for step in range(steps):
        seen = Watched(model)
        given = drawn(batch, labels.shape[1], seed=step)
        with torch.no_grad(), token_drop(model, "layer", Dropping(tokens=share), given):
            model(parameters, batch)
        found.append((seen.out[1][:, None] == seen.given[2][:, :, None]).all(-1).any(1))
    return found


def asked_for(count: int, length: int, share: float) -> torch.Tensor:
    chances = torch.rand(count, length, generator=torch.Generator().manual_seed(1))
    return torch.where(chances < share, 5, IGNORED)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_tokens_that_are_asked_for_never_leave(share: float) -> None:
    """As long as fewer are asked for than stay."""
    labels = asked_for(8, 16, 0.3)
    asked = labels != IGNORED
    assert (asked.sum(1) < kept_tokens(Dropping(tokens=share), 16)).all()
    left = torch.zeros(8, 16, dtype=torch.bool)
    for kept in kept_rows(labels, share, steps=24):
        assert (kept.sum(1) == kept_tokens(Dropping(tokens=share), 16)).all()
        assert kept[asked].all()
        assert kept[:, 0].all()
        left |= ~kept
    asked[:, 0] = True
    assert (left == ~asked).all(), "every other token leaves at some step"


@pytest.mark.parametrize(
    ("strategy", "dropping"),
    [
        ("plain", NOTHING),
        ("inherit", NOTHING),
        ("two-stage", Dropping(layers=0.9)),
        ("plain", Dropping(tokens=0.5)),
        ("layerwise", Dropping(layers=0.5, tokens=0.3)),
    ],
)
@pytest.mark.slow
def test_what_is_learned_does_not_depend_on_micro_batches(strategy: str, dropping: Dropping) -> None:
    run = run_of("gpt2", strategy, dropping=dropping, steps=8)
    found = [trained(run, setup_of("gpt2", micro_batch_size=size))[0][-1]["loss"] for size in (BATCH, 3, 1)]
    # Gradients are summed in another order: float32's last bits, through Adam.
    assert found[1:] == pytest.approx([found[0]] * 2, abs=1e-5)


def test_tokens_cannot_leave_a_mask() -> None:
    """A sliding window brings a mask for every layer."""
    config = config_of("mistral", num_hidden_layers=4)
    model, batch = LibraryModel(family_of(config), config), {"input_ids": torch.arange(20).reshape(2, 10)}
    with (
        pytest.raises(RecipeError, match="token-drop does not support mistral"),
        token_drop(model, "layer", Dropping(tokens=0.5), drawn(batch, 10)),
    ):
        model(state_of(config, model_of(config, dtype=torch.float32)), batch)


def test_nothing_is_left_out_where_losses_are_read() -> None:
    run, setup = run_of(dropping=Dropping(layers=0.9, tokens=0.5, steps=STEPS)), setup_of()
    points, state = trained(run)
    config = run.stages[0].config
    model = LibraryModel(setup.family, config)

    def loss(parameters: Mapping[str, torch.Tensor]) -> float:
        return mean_loss(model.loss, parameters, setup.examples, batch_size=BATCH, device="cpu", dtype=torch.float32)

    start = {name: torch.tensor(values) for name, values in drawn_model(setup.family, config, seed=0).items()}
    # Losses are told to six digits behind the point.
    assert points[0]["loss"] == pytest.approx(loss(start), abs=1e-6)
    assert points[-1]["loss"] == pytest.approx(loss(state.tensors), abs=1e-6)


# --- costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "dropping"),
    [*((strategy, NOTHING) for strategy in STRATEGIES), ("two-stage", Dropping(tokens=0.3))],
)
def test_a_curve_costs_what_torch_counts(strategy: str, dropping: Dropping) -> None:
    """All operations of a run, less those of its measurements, which do not count: to the last one."""
    run, setup, told = run_of("gpt2", strategy, dropping=dropping), setup_of(), dict[int, float]()
    total, measured, points = 0, 0, []
    state, first = beginning(run, setup), 0
    for end in run.breaks:
        stage = run.stage_at(first)
        if stage.begin == first:
            # Growth on the way is no part of training.
            state = begin_stage(setup.family, state, stage, device="cpu")
        teacher = teacher_of() if stage.teacher else None
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            found, state = train_segment(setup, run, state, range(first, end), teacher=teacher, on_step=noted(told))
        total += counter.get_total_flops()
        points += found
        one = forward_flops(setup.family, stage.config, tokens=len(setup.examples) * LENGTH, sequence_length=LENGTH)
        # A stage is read where it begins, too; only the first of these is a point of the curve.
        measured += one * (len(found) + (first == stage.begin > 0))
        first = end
    assert told[STEPS] == state.flops == total - measured
    assert [point["flops"] for point in points] == [told.get(int(point["step"]), 0.0) for point in points]
    assert list(told.values()) == sorted(set(told.values())), "every step costs something"
    if not dropping.tokens and strategy not in ("two-stage", "shared"):
        names = {name for name, mask in state.added.items() if mask.any()}
        told_before = run_flops(setup.family, run, sequence_length=LENGTH, added=names, teacher=config_of("gpt2"))
        assert told[STEPS] == told_before, "the cost is known before"


@pytest.mark.parametrize("strategy", ["plain", "two-stage", "stacking"])
def test_a_curve_costs_the_sum_of_its_steps(strategy: str) -> None:
    """Where layers are dropped, step by step: which were, is told by what moved. See `test_a_layer_that_is_dropped_does_not_learn`."""
    run, told = run_of("gpt2", strategy, dropping=Dropping(layers=0.9, steps=24), steps=24), {0: 0.0}
    points, _ = trained(run, on_step=noted(told))
    total, family = 0.0, family_of(config_of("gpt2"))
    for stage, span in zip(run.stages, run.spans, strict=True):
        height = family.sizes(stage.config)["layer"]
        step = Step(family=family, stage=stage, tokens=BATCH * LENGTH, length=LENGTH)
        for at in span:
            late = stage.is_late(at)
            possible = {
                step.flops(one, dropped_layers(run.dropping, layers=one, step=at, seed=run.seed), late=late)
                for one in (stage.submodels if not late else ()) or (height,)
            }
            assert told[at + 1] - told[at] in possible
            total += told[at + 1] - told[at]
    assert points[-1]["flops"] == total


def test_the_points_of_a_curve_are_where_they_are_asked_for() -> None:
    for strategy in STRATEGIES:
        run = run_of("gpt2", strategy, learning_rate=0.0)
        points, _ = trained(run)
        ends = {span.stop for span in run.spans}
        assert [point["step"] for point in points] == sorted({0, *ends, *range(4, STEPS, 4)})


# --- runs as data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stages_share_the_steps_between_them(strategy: str) -> None:
    """Without gap or overlap, each at least one step, each where its share says to within one."""
    parts = STRATEGIES[strategy].parts(4)
    run = run_of("gpt2", strategy, steps=40)
    planned = tuple(
        PlannedStage(at=part.at, stage=stage, until_share=part.until_share)
        for part, stage in zip(parts, run.stages, strict=True)
    )
    for steps in range(len(planned), 300):
        longer = replace(run, stages=stages_of(planned, steps), steps=steps, decay=0)
        assert [step for span in longer.spans for step in span] == list(range(steps))
        assert all(longer.spans)
        for part, stage, span in zip(planned, longer.stages, longer.spans, strict=True):
            assert stage.until is None or span.start <= stage.until <= span.stop
            assert stage.warmup <= len(span) // 5
            if steps >= 40:
                assert abs(stage.begin - part.at * steps) <= 1


def test_a_rate_rises_stays_and_falls_to_the_end() -> None:
    run = run_of(steps=20, warmup=4, decay=5)
    factors = [run.factor(step) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:15] == [1.0] * 11
    assert run.turn == 15
    # The step after the last would have a rate of zero.
    assert factors[15:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert [replace(run, decay=0).factor(step) for step in range(4, 20)] == [1.0] * 16
    assert replace(run, decay=0).turn == 20
    falling = replace(run, decay=20, warmup=0)
    assert [falling.factor(step) for step in range(20)] == pytest.approx([(20 - step) / 21 for step in range(20)])
    longer = replace(run, steps=50)
    assert [longer.factor(step) for step in range(15)] == factors[:15]


def test_a_cosine_falls_from_the_end_of_the_warmup() -> None:
    run = run_of(steps=20, warmup=4, decay=5, shape="cosine")
    wanted = [0.25, 0.5, 0.75, 1.0, *(0.5 * (1 + np.cos(np.pi * at / 16)) for at in range(16))]
    assert [run.factor(step) for step in range(20)] == pytest.approx(wanted)
    assert run.turn == 0


@pytest.mark.parametrize("shape", ["stable", "cosine"])
def test_a_rate_rises_again_where_a_stage_asks_for_it(shape: str) -> None:
    """And has the factor of its stage."""
    run = run_of("gpt2", "late", steps=20, warmup=2, decay=4, shape=shape)
    first, second = run.stages
    assert second.begin == 10
    again = replace(run, stages=(first, replace(second, warmup=4, rate=0.5)))
    for step in range(20):
        rising = {10: 0.25, 11: 0.5, 12: 0.75}.get(step, 1.0) * (0.5 if step >= 10 else 1.0)
        assert again.factor(step) == pytest.approx(run.factor(step) * rising)


@settings(deadline=None)
@given(
    steps=st.integers(2, 400),
    warmup=st.integers(0, 60),
    decay=st.floats(0, 1),
    shape=st.sampled_from(["stable", "cosine"]),
)
def test_rates_lie_between_nothing_and_the_peak(steps: int, warmup: int, decay: float, shape: str) -> None:
    run = run_of(steps=steps, warmup=warmup, decay=round(decay * steps), shape=shape)
    factors = [run.factor(step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)


# --- histories --------------------------------------------------------------------------------------------------------


def history_run(**changes: Any) -> Run:
    """Eight steps; three of two layers, three of four, two of them with a rate that falls."""
    found: dict[str, Any] = {"steps": 8, "decay": 2, "dropping": Dropping(layers=0.5, tokens=0.3, steps=8)}
    at = changes.pop("at", 3)
    growth = Growth(**{"width": "copy", "depth": "identity", **changes.pop("growth", {})})
    family, config = family_of(config_of("gpt2")), config_of("gpt2")
    target = growth_plan_of(family, growth, config, {"n_layer": 4}, where="test").target
    stages = (
        Stage(begin=0, config=config, **changes.pop("first", {})),
        Stage(begin=at, config=target, growth=growth, asked={"n_layer": 4}, **changes.pop("second", {})),
    )
    return run_of(stages=stages, **{**found, **changes})


# Every setting -> a change of it, and the first step after which the state is another.
CHANGES: dict[str, tuple[dict[str, Any], int]] = {
    "seed": ({"seed": 1}, 1),
    "learning_rate": ({"learning_rate": 2e-3}, 1),
    "optimizer": ({"optimizer": MUON}, 1),
    "weight_decay": ({"optimizer": OptimizerSettings(weight_decay=0.2)}, 1),
    "betas": ({"optimizer": OptimizerSettings(betas=(0.9, 0.9))}, 1),
    "clip": ({"optimizer": OptimizerSettings(clip=0.1)}, 1),
    "batch_size": ({"batch_size": 3}, 1),
    "order": ({"order": "other"}, 1),
    "warmup": ({"warmup": 3}, 1),
    "dropped layers": ({"dropping": Dropping(layers=0.9, tokens=0.3, steps=8)}, 1),
    "dropped tokens": ({"dropping": Dropping(layers=0.5, tokens=0.6, steps=8)}, 1),
    "shape": ({"shape": "cosine"}, 4),
    "steps": ({"steps": 9}, 7),
    "decay": ({"decay": 1}, 7),
    "at": ({"at": 4}, 4),
    "depth": ({"growth": {"depth": "stack"}}, 4),
    "state": ({"growth": {"state": "reset"}}, 4),
    "second warmup": ({"second": {"warmup": 2}}, 4),
    "second rate": ({"second": {"rate": 0.5}}, 4),
    "trains": ({"second": {"trains": "top", "top": 2}}, 4),
    "submodels": ({"second": {"submodels": (1,)}}, 4),
}


def states_of(run: Run) -> dict[int, dict[str, np.ndarray]]:
    """The weights and moments after each step."""
    setup, found, state = setup_of(evaluate_every=100), {}, beginning(run, setup_of())
    for step in range(run.steps):
        _, state = trained(run, setup, begin=(step, state), until=step + 1)
        # The next segment takes the optimizer's state over, and changes it.
        found[step + 1] = {name: array.copy() for name, array in state.arrays()[0].items()}
    return found


@cache
def history_states() -> dict[int, dict[str, np.ndarray]]:
    return states_of(history_run())


def equal(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("change", CHANGES)
def test_a_history_is_another_exactly_where_the_state_is(change: str) -> None:
    """One setting at a time. A history may part earlier than the state only where a rate or a growth happens to change nothing yet."""
    changes, first = CHANGES[change]
    run, other = history_run(), history_run(**changes)
    found = states_of(other)
    for step in range(1, min(run.steps, other.steps) + 1):
        parted = run.history(step) != other.history(step)
        alike = equal(found[step], history_states()[step])
        assert parted or alike, f"step {step}: the history is the same, the state is not"
        if change != "shape" and not change.startswith("dropped") and change != "warmup":
            assert parted == (step >= first)
            assert alike == (step < first), f"step {step}"


def test_every_field_is_part_of_the_history() -> None:
    """A field that is added to a run, a stage, a growth or an optimizer decides the state, too, or this test says why not."""
    run = history_run(teacher="t", first={"teacher": True, "until": 2})
    digest = run.history(8)
    for name, value in {
        "start": "s",
        "steps": 9,
        "warmup": 3,
        "decay": 1,
        "shape": "cosine",
        "optimizer": MUON,
        "learning_rate": 1.0,
        "batch_size": 5,
        "seed": 7,
        "order": "o",
        "dropping": NOTHING,
        "teacher": "",
        "stages": run.stages[:1],
    }.items():
        assert replace(run, **{name: value}).history(8) != digest, name
    assert {field.name for field in fields(Run)} == {
        "start", "stages", "steps", "warmup", "decay", "shape", "optimizer", "learning_rate", "batch_size", "seed", "order", "dropping",
        "teacher",
    }  # fmt: skip
    stage = run.stages[1]
    assert stage.growth is not None
    for number, (name, value) in itertools.product(
        (1,),
        {
            "begin": 4,
            "config": {},
            "growth": None,
            "asked": None,
            "warmup": 1,
            "rate": 0.5,
            "trains": "top",
            "top": 1,
            "submodels": (1,),
            "until": 6,
        }.items(),
    ):
        stages = (*run.stages[:number], replace(stage, **{name: value}))
        assert replace(run, stages=stages).history(8) != digest, name
        assert replace(run, stages=stages).history(3) == run.history(3), "what comes later does not matter"
    for name, value in {
        "width": "w",
        "depth": "d",
        "state": "s",
        "keying": "source",
        "tie": "paper",
        "seed": 3,
    }.items():
        stages = (run.stages[0], replace(stage, growth=replace(stage.growth, **{name: value})))
        assert replace(run, stages=stages).history(8) != digest, name
    for field in fields(OptimizerSettings):
        changed = {"name": "muon", "betas": (0.5, 0.5)}.get(field.name, 0.123)
        assert replace(run, optimizer=replace(run.optimizer, **{field.name: changed})).history(1) != run.history(1)


RUNS = st.fixed_dictionaries(
    {
        "steps": st.sampled_from([6, 8]),
        "decay": st.sampled_from([0, 2, 4]),
        "shape": st.sampled_from(["stable", "cosine"]),
        "warmup": st.sampled_from([1, 2]),
        "seed": st.sampled_from([0, 1]),
        "optimizer": st.sampled_from([ADAMW, MUON]),
        "at": st.sampled_from([2, 4]),
        "growth": st.sampled_from([{"state": "carry"}, {"state": "copy"}]),
    }
)

_SEEN: dict[str, dict[str, np.ndarray]] = {}


@pytest.mark.slow
@given(RUNS)
@settings(max_examples=12, deadline=None)
def test_runs_with_the_same_history_have_the_same_state(changes: dict[str, Any]) -> None:
    """Of any two runs that were ever drawn, at any step: the same history, the same bits; another history, another state."""
    run = history_run(**changes)
    for step, arrays in states_of(run).items():
        known = _SEEN.setdefault(run.history(step), arrays)
        assert equal(known, arrays)
