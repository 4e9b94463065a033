"""One run of a comparison, on tiny real models: it trains what its strategy says, from where it says, and can be stopped anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ligo_convert.comparison.dropping import DRAWS, layer_drop, token_drop
from ligo_convert.comparison.step_costs import Step, with_layers
from ligo_convert.comparison.trainer import RunSpec, Teacher, Tensors, TrainSetup, add_layers, schedule_of, train_run
from support.tiny import CASES, TARGETS, config_of, empty_model, family_of, grown_state, model_of, start_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ligo_convert.comparison.strategies import (
    NOTHING,
    STRATEGIES,
    TEMPERATURE,
    Dropping,
    dropped_layers,
    kept_tokens,
    skipped_layers,
)
from ligo_convert.comparison.worker import _BranchedState
from ligo_convert.data.examples import ArrayExamples, DataSplits, Examples
from ligo_convert.data.masking import MaskedExamples, Masking
from ligo_convert.errors import RecipeError
from ligo_convert.families.flops import forward_flops
from ligo_convert.families.schema import Family
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.new_parameters import added_parts
from ligo_convert.training.functional_model import LibraryModel, mean_loss
from ligo_convert.training.loop import StateStore
from ligo_convert.training.pretrain import drawn_model
from ligo_convert.training.schedules import Schedule
from ligo_convert.training.state import FolderState
from ligo_convert.training.tasks import IGNORED, on_device

VOCABULARY, LENGTH, BATCH = 29, 10, 4
STEPS = 15
DEEP: Mapping[str, Mapping[str, object]] = {
    "gpt2": {"n_layer": 4},
    "bert": {"num_hidden_layers": 4},
    "llama": {"num_hidden_layers": 4},
    "vit": {"depth": 4},
    "cait": {"depth": 4},
}


class Stop(Exception):
    pass


# What runs share.


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


def setup_of(name: str, **changes: Any) -> TrainSetup:
    family = family_of(config_of(name))
    settings: dict[str, Any] = {
        "family": family,
        "slices": slices_of(name),
        "batch_size": BATCH,
        "micro_batch_size": BATCH,
        "sequence_length": family.sequence(config_of(name), LENGTH),
        "evaluate_every": 4,
        "device": "cpu",
        "autocast": False,
    }
    return TrainSetup(**{**settings, **changes})


def run_of(name: str = "gpt2", strategy: str = "plain", **changes: Any) -> RunSpec:
    config = config_of(name, **DEEP[name])
    layers = family_of(config).sizes(config)[family_of(config).depth_axes[0]]
    settings: dict[str, Any] = {
        "config": config,
        "start": None,
        "added": None,
        "stages": STRATEGIES[strategy].stages(layers),
        "steps": STEPS,
        "warmup": 2,
        "budget": changes.get("steps", STEPS),
        "learning_rate": 3e-3,
        "shape": "stable",
        "seed": 0,
        "dropping": NOTHING,
        "examples": slices_of(name).test,
    }
    return RunSpec(**{**settings, **changes})


def teacher_of(name: str = "gpt2") -> Teacher:
    config = config_of(name)
    parameters = {found: tensor.detach() for found, tensor in model_of(config, dtype=torch.float32).named_parameters()}
    return Teacher(model=LibraryModel(family_of(config), config), parameters=parameters, config=config)


def grown(**changes: object) -> dict[str, Any]:
    """What a run of `added-only` begins with: a source grown in width and depth, and where each tensor is new."""
    target = {"n_embd": 24, "n_head": 3, "n_layer": 4, **changes}
    start = start_of("gpt2", config_of("gpt2"), target, width="lemon", depth="identity")
    operator, family = initial_operator(start), family_of(start.target)
    state = {
        name: tensor.detach() for name, tensor in model_of(config_of("gpt2"), dtype=torch.float32).named_parameters()
    }
    return {
        "config": start.target,
        "start": grown_state(operator, state, dtype=torch.float32),
        "added": {name: part.mask() for name, part in added_parts(family, operator).items()},
    }


def strategy_run(strategy: str, **changes: Any) -> RunSpec:
    return run_of(strategy=strategy, **{**(grown() if strategy == "added-only" else {}), **changes})


Stores = Callable[[int], StateStore | None]


def nowhere(stage: int) -> None:
    return None


def trained(run: RunSpec, setup: TrainSetup | None = None, store: Stores = nowhere, **more: Any):
    teacher = teacher_of() if any(stage.teacher for stage in run.stages) else None
    return train_run(setup or setup_of("gpt2"), run, teacher=teacher, store=store, **more)


def same(found: Tensors, wanted: Tensors) -> None:
    """Bit for bit."""
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different


def folder(path: Path) -> Stores:
    return lambda stage: FolderState(path / f"{stage}.safetensors", owner="", warn=print)


class Every:
    """A state store in memory that keeps every state it is given, by steps done."""

    def __init__(self) -> None:
        self.states: dict[int, tuple[dict[str, np.ndarray], dict[str, Any]]] = {}

    def save(self, arrays: dict[str, np.ndarray], text: str) -> None:
        data = json.loads(text)
        self.states[data["step"]] = ({name: array.copy() for name, array in arrays.items()}, data)

    def load(self) -> None:
        return None

    def changed(self, step: int) -> set[str]:
        """The parameters that the step to `step` has moved."""
        before, now = self.parameters(step - 1), self.parameters(step)
        return {name for name in now if not torch.equal(now[name], before[name])}

    def parameters(self, step: int) -> Tensors:
        arrays = self.states[step][0]
        named = {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith("parameter/")}
        return {name: torch.from_numpy(array) for name, array in named.items()}


def until(end: int, flops: dict[int, float]) -> Callable[[int, float], None]:
    """Notes what has been spent by step, and stops after step `end`."""

    def told(step: int, spent: float) -> None:
        flops[step] = spent
        if step == end:
            raise Stop

    return told


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
    points, tensors = trained(run, setup)
    model = empty_model(run.config)
    drawn = drawn_model(setup.family, run.config, seed=0)
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
        batch = on_device(run.examples.take(range(len(run.examples))), "cpu", torch.float32)
        with torch.no_grad():
            return float(library_loss(model, batch))

    losses = {0: measured()}
    for step in range(STEPS):
        done = (step - 2) / (STEPS - 2)
        falling = 0.5 * (1 + np.cos(np.pi * done)) if shape == "cosine" else min(1.0, (1 - done) / 0.2)
        rate = 3e-3 * ((step + 1) / 2 if step < 2 else falling)
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
        torch.testing.assert_close(tensors[found], tensor.detach(), rtol=0, atol=1e-5, msg=found)


def test_training_learns() -> None:
    points, _ = trained(run_of(steps=60))
    assert points[-1]["loss"] < points[0]["loss"] - 0.3


# --- stopped and gone on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("often", [True, False], ids=["saved every step", "saved at the end of a stage"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.slow
def test_a_run_that_is_stopped_ends_with_the_same_bits(
    strategy: str, often: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of each stage, and between two; the curve and its costs are the same, too."""
    run = strategy_run(strategy)
    points, tensors = trained(run)
    stops = {(span.start + span.stop + 1) // 2 for span in run.spans}
    if often:
        monkeypatch.setattr("ligo_convert.training.loop.SAVE_EVERY_SECONDS", -1.0)
    else:
        # What has been done of a stage since its beginning is done again.
        stops = {max(stops), run.spans[0].stop}
    for number, at in enumerate(sorted(stops)):
        store = folder(tmp_path / f"{number}")

        def stop(step: int, flops: float, at: int = at) -> None:
            if step == at:
                raise Stop

        with pytest.raises(Stop):
            trained(run, store=store, on_step=stop)
        again, resumed = trained(run, store=store)
        assert again == points, at
        same(resumed, tensors)


def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(tmp_path: Path, save_often: None) -> None:
    run, store = strategy_run("stacking", steps=6), folder(tmp_path)
    points, tensors = trained(run)
    count = 0

    def stop(step: int, flops: float) -> None:
        raise Stop

    while True:
        try:
            again, resumed = trained(run, store=store, on_step=stop)
            break
        except Stop:
            count += 1
    assert count == 6, "each try takes one step"
    assert again == points
    same(resumed, tensors)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run = strategy_run("stacking")
    points, tensors = trained(run, store=folder(tmp_path))

    def never(step: int, flops: float) -> None:
        raise AssertionError("a step was taken")

    again, resumed = trained(run, store=folder(tmp_path), on_step=never)
    assert again == points
    same(resumed, tensors)


# --- budget fractions ---------------------------------------------------------------------------------------------------------


def branched(run: RunSpec, shorter: int, path: Path, setup: TrainSetup) -> tuple[Any, Any]:
    """The run done from its beginning, and gone on from the milestone of a run of `shorter` steps, as jobs are."""
    short = replace(run, steps=shorter)
    trunk = FolderState(path / "trunk.safetensors", owner="", warn=print)
    trained(short, setup, milestone=(schedule_of(short).turn, trunk))
    steps: list[int] = []
    found = trained(
        run,
        setup,
        store=lambda stage: _BranchedState(
            own=FolderState(path / "own.safetensors", owner="", warn=print), trunk=trunk
        ),
        on_step=lambda step, flops: steps.append(step),
    )
    assert steps == list(range(schedule_of(short).turn + 1, run.steps + 1)), "it goes on from where the rate fell"
    return trained(run, setup), found


@pytest.mark.parametrize(
    ("strategy", "dropping", "shorter"),
    [
        ("plain", NOTHING, 6),
        ("plain", NOTHING, 15),
        ("plain", Dropping(tokens=0.3), 10),
        ("plain", Dropping(layers=0.9), 10),
        ("added-only", NOTHING, 10),
    ],
)
def test_a_longer_run_gone_on_from_a_shorter_one_is_the_same(
    strategy: str, dropping: Dropping, shorter: int, tmp_path: Path
) -> None:
    """Layers are dropped by the budget, not by the run's own steps: by ten they would be others, with this seed."""
    run = strategy_run(strategy, steps=20, warmup=1, budget=20, dropping=dropping, seed=8)
    (points, tensors), (again, resumed) = branched(run, shorter, tmp_path, setup_of("gpt2"))
    assert again == points
    same(resumed, tensors)


# --- stages -----------------------------------------------------------------------------------------------------------


def after(run: RunSpec, number: int, store: Stores) -> Tensors:
    """The tensors that stage `number` of a finished run ended with: the run cut there, which takes no further step."""
    ends = run.spans[number].stop
    stages = tuple(
        replace(stage, share=len(span) / ends) for stage, span in zip(run.stages[: number + 1], run.spans, strict=False)
    )
    cut = replace(run, stages=stages, steps=ends)
    assert cut.spans == run.spans[: number + 1]

    def never(step: int, flops: float) -> None:
        raise AssertionError("a step was taken")

    return trained(cut, store=store, on_step=never)[1]


def layer_of(family: Family, config: Mapping[str, object]) -> dict[str, int | None]:
    """Every tensor with its layer of the first depth axis."""
    axis = family.depth_axes[0]
    return {
        row.name(layer): layer if row.depth == axis else None
        for row in family.rows_for(config)
        for layer in family.layers(row, config)
    }


def test_layers_that_are_frozen_do_not_change(tmp_path: Path) -> None:
    """MSLT: in the grown stages what lies below the new layers stays bit for bit; they, and what lies above, learn; in the end all does."""
    run, store = strategy_run("layerwise"), folder(tmp_path)
    trained(run, store=store)
    family = family_of(run.config)
    ends = [after(run, number, store) for number in range(len(run.stages))]
    assert [stage.layers for stage in run.stages] == [1, 2, 3, 4, 4]
    for number, stage in enumerate(run.stages[1:-1], start=1):
        before = add_layers(
            family,
            ends[number - 1],
            with_layers(family, run.config, stage.layers),
            run.stages[number - 1].layers,
            stage.layers,
            "top",
        )
        for name, layer in layer_of(family, with_layers(family, run.config, stage.layers)).items():
            learns = layer == stage.layers - 1 or name.startswith("transformer.ln_f")
            assert torch.equal(ends[number][name], before[name]) != learns, (number, name)
    assert not any(torch.equal(ends[-1][name], ends[-2][name]) for name in ends[-1])


@pytest.mark.parametrize(
    ("strategy", "taken"),
    [("stacking", [0, 1, 0, 0, 1, 0]), ("layerwise", [0, 1, 1, 1, 1, 1])],
)
@pytest.mark.parametrize("name", ["gpt2", "bert", "cait"])
@pytest.mark.slow
def test_new_layers_are_copies(name: str, strategy: str, taken: list[int]) -> None:
    """At a rate of zero nothing moves, and what is left is which layer came from which: heights 2, 3, 6, and 2, 3, 5, 6."""
    key = next(iter(DEEP[name]))
    config = config_of(name, **{key: 6})
    family = family_of(config)
    run = run_of(name, config=config, stages=STRATEGIES[strategy].stages(6), learning_rate=0.0)
    _, tensors = trained(run, setup_of(name))
    drawn = drawn_model(family, with_layers(family, config, 2), seed=0)
    for row in family.rows_for(config):
        for layer in family.layers(row, config):
            old = taken[layer] if row.depth == family.depth_axes[0] and layer is not None else layer
            assert np.array_equal(tensors[row.name(layer)].numpy(), drawn[row.name(old)]), row.name(layer)


@pytest.mark.parametrize(
    ("layers_from", "old", "new", "taken"),
    [
        ("stack", 3, 6, [0, 1, 2, 0, 1, 2]),
        ("stack", 2, 5, [0, 1, 0, 1, 0]),
        ("top", 3, 4, [0, 1, 2, 2]),
        ("top", 3, 6, [0, 1, 2, 0, 1, 2]),
        ("top", 4, 6, [0, 1, 2, 3, 2, 3]),
        ("top", 1, 4, [0, 0, 0, 0]),
    ],
)
def test_the_layers_that_come(layers_from: str, old: int, new: int, taken: list[int]) -> None:
    config = config_of("gpt2", n_layer=new)
    family = family_of(config)
    tensors = {
        name: torch.tensor(values)
        for name, values in drawn_model(family, config_of("gpt2", n_layer=old), seed=1).items()
    }
    found = add_layers(family, tensors, config, old, new, layers_from)
    assert found.keys() == layer_of(family, config).keys()
    for name, layer in layer_of(family, config).items():
        before = name if layer is None else name.replace(f".{layer}.", f".{taken[layer]}.")
        assert torch.equal(found[name], tensors[before])


def test_in_the_first_of_two_stages_the_top_of_a_drawn_sub_model_learns(save_often: None) -> None:
    """Step by step: one layer of four, the final norm, and nothing else; every sub-model comes, and costs what it costs."""
    run, store, flops = strategy_run("two-stage", steps=160), Every(), {0: 0.0}
    with pytest.raises(Stop):
        trained(run, store=lambda stage: store, on_step=until(22, flops))
    family, (stage,) = family_of(run.config), run.stages
    assert stage.until_fraction * run.steps == 20
    layers = layer_of(family, run.config)
    learning = {name for name, layer in layers.items() if layer is not None or name.startswith("transformer.ln_f")}
    assert store.parameters(1).keys() == layers.keys()
    step = Step(family=family, config=run.config, stage=stage, tokens=BATCH * LENGTH, length=LENGTH)
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
    run = strategy_run("added-only")
    assert run.start is not None
    assert run.added is not None
    _, tensors = trained(run)
    kinds = set()
    for name, start in run.start.items():
        new = torch.from_numpy(run.added[name])
        kinds.add("new" if new.all() else "mixed" if new.any() else "old")
        assert torch.equal(tensors[name][~new], start[~new]), name
        assert not new.any() or not torch.equal(tensors[name][new], start[new]), name
    assert kinds == {"new", "mixed"}


def test_whole_tensors_that_are_old_stay() -> None:
    """Deeper alone: old layers, embedding and final norm are the source's, bit for bit."""
    run = strategy_run("added-only", **grown(n_embd=16, n_head=2))
    assert run.start is not None
    assert run.added is not None
    _, tensors = trained(run)
    stayed = {name for name in run.start if torch.equal(tensors[name], run.start[name])}
    assert stayed == {name for name, mask in run.added.items() if not mask.any()}
    assert {"transformer.wte.weight", "transformer.ln_f.weight"} < stayed


# --- a teacher --------------------------------------------------------------------------------------------------------


def divergence(student: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """4 KL(teacher || student) at temperature 2, written out; a mean over tokens."""
    assert TEMPERATURE == 2.0
    given, own = (found.double() / 2 for found in (other, student))
    chance = given.exp() / given.exp().sum(-1, keepdim=True)
    log = own - own.exp().sum(-1, keepdim=True).log()
    return 4 * (chance * (chance.log() - log)).sum(-1).mean()


def losses_at(name: str, run: RunSpec, parameters: Mapping[str, torch.Tensor], step: int):
    """Own loss and divergence of a model of the library at these parameters, on the batch of a step."""
    model, teacher = empty_model(run.config), model_of(config_of(name), dtype=torch.float32)
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
    train_run(setup_of(name), run, teacher=teacher_of(name), store=lambda stage: store)
    drawn = {
        found: torch.tensor(values) for found, values in drawn_model(family_of(run.config), run.config, seed=0).items()
    }
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
    run, store = run_of(name, "inherit", steps=16), Every()
    setup = setup_of(name, evaluate_every=1)
    train_run(setup, run, teacher=teacher_of(name), store=lambda stage: store)
    assert run.stages[0].until_fraction * run.steps == 8
    log = {line["step"]: line for line in store.states[16][1]["log"]}
    for step in range(1, 16):
        _, own, taught = losses_at(name, run, store.parameters(step), step)
        weight = max(0.0, 1 - step / 8)
        wanted = (1 - weight) * own + weight * taught
        # What is told is rounded to six digits behind the point, of float32 sums.
        assert log[step + 1]["loss"] == pytest.approx(float(wanted.detach()), rel=2e-6, abs=2e-6), step


# --- what is left out -------------------------------------------------------------------------------------------------


def named(model: torch.nn.Module) -> Tensors:
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


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
    parameters = named(model_of(whole))
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
    run = run_of(strategy="two-stage", dropping=Dropping(layers=0.9), steps=160)
    with pytest.raises(Stop):
        trained(run, on_step=until(20, {}))


def test_layers_are_there_again_after_a_failure() -> None:
    config = config_of("gpt2", n_layer=4)
    model, parameters = LibraryModel(family_of(config), config), named(model_of(config))
    with torch.no_grad():
        before = model(parameters, batch_of("gpt2"))
        with pytest.raises(Stop), layer_drop(model, "layer", (0, 2)):
            raise Stop
        with pytest.raises(Stop), token_drop(model, "layer", Dropping(tokens=0.5), {}):
            raise Stop
        assert torch.equal(model(parameters, batch_of("gpt2")), before)


def test_a_layer_that_is_dropped_does_not_learn(save_often: None) -> None:
    """And whatever is dropped, the parameters of a step are moved by what was there alone."""
    run, store, flops = run_of(dropping=Dropping(layers=0.9), steps=30), Every(), dict[int, float]()
    trained(run, store=lambda stage: store, on_step=lambda step, spent: flops.update({step: spent}))
    family = family_of(run.config)
    layers = layer_of(family, run.config)
    step = Step(family=family, config=run.config, stage=run.stages[0], tokens=BATCH * LENGTH, length=LENGTH)
    seen = set()
    for at in range(2, 31):
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
    model, batch, parameters = LibraryModel(family, config), batch_of(name), named(library)
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
    model, parameters = LibraryModel(family_of(config), config), named(model_of(config))
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
    run = run_of(strategy=strategy, dropping=dropping, steps=8)
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
        model(named(model_of(config, dtype=torch.float32)), batch)


def test_nothing_is_left_out_where_losses_are_read() -> None:
    run = run_of(dropping=Dropping(layers=0.9, tokens=0.5))
    setup = setup_of("gpt2")
    points, tensors = trained(run, setup)
    model = LibraryModel(setup.family, run.config)

    def loss(parameters: Mapping[str, torch.Tensor]) -> float:
        return mean_loss(model.loss, parameters, run.examples, batch_size=BATCH, device="cpu", dtype=torch.float32)

    start = {name: torch.tensor(values) for name, values in drawn_model(setup.family, run.config, seed=0).items()}
    # Losses are told to six digits behind the point.
    assert points[0]["loss"] == pytest.approx(loss(start), abs=1e-6)
    assert points[-1]["loss"] == pytest.approx(loss(tensors), abs=1e-6)


# --- costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "dropping"),
    [*((strategy, NOTHING) for strategy in STRATEGIES), ("two-stage", Dropping(tokens=0.3))],
)
@pytest.mark.slow
def test_a_curve_costs_what_torch_counts(strategy: str, dropping: Dropping) -> None:
    """All operations of a run, less those of its measurements, which do not count: to the last one."""
    run, setup = strategy_run(strategy, dropping=dropping), setup_of("gpt2")
    told = dict[int, float]()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        points, _ = trained(run, setup, on_step=lambda step, spent: told.update({step: spent}))
    measured = 0
    for stage, span in zip(run.stages, run.spans, strict=True):
        config = with_layers(setup.family, run.config, stage.layers)
        tokens = len(run.examples) * LENGTH
        reads = 1 + sum(1 for done in range(span.start + 1, span.stop + 1) if done % 4 == 0 or done == span.stop)
        measured += reads * forward_flops(setup.family, config, tokens=tokens, sequence_length=LENGTH)
    assert told[STEPS] == counter.get_total_flops() - measured
    assert [point["flops"] for point in points] == [told.get(int(point["step"]), 0.0) for point in points]
    assert list(told.values()) == sorted(set(told.values())), "every step costs something"


@pytest.mark.parametrize("strategy", ["plain", "two-stage", "stacking"])
def test_a_curve_costs_the_sum_of_its_steps(strategy: str) -> None:
    """Where layers are dropped, step by step: which were, is told by what moved. See `test_a_layer_that_is_dropped_does_not_learn`."""
    run, told = run_of(strategy=strategy, dropping=Dropping(layers=0.9), steps=24), {0: 0.0}
    points, _ = trained(run, on_step=lambda step, spent: told.update({step: spent}))
    config = {height: with_layers(family_of(run.config), run.config, height) for height in (1, 2, 3, 4)}
    total = 0.0
    for stage, span in zip(run.stages, run.spans, strict=True):
        height = stage.layers or 4
        step = Step(
            family=family_of(run.config),
            config=config[height],
            stage=stage,
            tokens=BATCH * LENGTH,
            length=LENGTH,
        )
        for at in span:
            late = at - span.start >= round(stage.until_fraction * len(span))
            dropped = dropped_layers(run.dropping, layers=height, step=at, steps=run.budget, seed=run.seed)
            possible = {
                step.flops(one, dropped, late=late) for one in (stage.submodels if not late else ()) or (height,)
            }
            assert told[at + 1] - told[at] in possible
            total += told[at + 1] - told[at]
    assert points[-1]["flops"] == total


@pytest.mark.slow
def test_the_points_of_a_curve_are_where_they_are_asked_for() -> None:
    for strategy in STRATEGIES:
        run = strategy_run(strategy)
        points, _ = trained(run)
        ends = {span.stop for span in run.spans}
        assert [point["step"] for point in points] == sorted({0, *ends, *range(4, STEPS, 4)})


# --- spans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stages_share_the_steps_between_them(strategy: str) -> None:
    """Without gap or overlap, each at least one step, each as long as its share says to within one."""
    stages = STRATEGIES[strategy].stages(12)
    run = run_of(stages=stages)
    for steps in range(len(stages), 300):
        spans = replace(run, steps=steps).spans
        assert [step for span in spans for step in span] == list(range(steps))
        assert all(spans)
        if steps >= 40:
            assert all(abs(len(span) - stage.share * steps) <= 1 for span, stage in zip(spans, stages, strict=True))


def test_a_schedule_begins_anew_with_every_stage() -> None:
    """Over the warmup's steps, but a fifth of a short stage at most."""
    for strategy in STRATEGIES:
        for steps in (8, 50, 400):
            run = strategy_run(strategy, steps=steps, warmup=6)
            begins = {span.start: max(1, min(6, len(span) // 5)) for span in run.spans[1:]}
            schedule = schedule_of(run)
            assert schedule == Schedule(steps=steps, warmup=6, shape="stable", begins=begins)
            for start, over in begins.items():
                assert schedule.factor(start + over - 1) >= schedule.factor(start) > 0
