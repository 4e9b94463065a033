"""The state of an optimizer grows with the weights: the laws of gradients, every family under every policy, the first step after growth."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from support.tiny import CONFIGS, TARGETS, config_of, grown_state, inputs_of, model_of, start_of, target_model

from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.families.schema import Family
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.growth_plan import GrowthPlan
from ligo_convert.growth.initialize import initial_operator, learnable, random_operator
from ligo_convert.growth.moments import grown_moments
from ligo_convert.growth.new_parameters import added_parts
from ligo_convert.growth.operator import Operator
from ligo_convert.growth.state_maps import POLICIES
from ligo_convert.growth.width_methods import WIDTHS

RATE = 1e-3


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def canonical(
    family: Family, config: Mapping[str, object], found: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Tensors by canonical name, from tensors by the names of the library's model."""
    names = [row.name(layer) for row in family.rows_for(config) for layer in family.layers(row, config)]
    return {name: found[family.written(name)] for name in names if family.written(name) in found}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of a fixed random function of the model's output, by the names of the library's model."""
    inputs = inputs_of(model)
    found = model(**inputs)
    out = found if isinstance(found, torch.Tensor) else found[0]
    wanted = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(((out - wanted) ** 2).mean(), parameters, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if grad is None else grad
        for name, parameter, grad in zip(names, parameters, grads, strict=True)
    }


class Pair:
    """A tiny source, its target, and the gradients of both at the start, in float64, by canonical names."""

    def __init__(self, start: GrowthPlan) -> None:
        self.family = start.family
        self.operator = initial_operator(start, dtype=np.float64)
        self.source = model_of(dict(start.source))
        self.weights = parameters_of(self.source)
        self.target = target_model(self.operator, self.weights)
        self.old = canonical(start.family, start.source, gradients(self.source))
        self.new = canonical(start.family, start.target, gradients(self.target))

    def lifted(self, policy: str) -> dict[str, torch.Tensor]:
        moments = {name: {"exp_avg": found, "step": torch.tensor(7.0)} for name, found in self.old.items()}
        grown = grown_moments(self.operator, self.family, moments, policy=policy, dtype=torch.float64)
        return {name: state["exp_avg"] for name, state in grown.items()}

    def directions(self, seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """A random direction d of the source, and M d of the target, by canonical names."""
        draw = torch.Generator().manual_seed(seed)
        along = {
            name: torch.randn(found.shape, generator=draw, dtype=torch.float64) for name, found in self.weights.items()
        }
        before = grown_state(self.operator, self.weights)
        after = grown_state(self.operator, {name: found + along[name] for name, found in self.weights.items()})
        moved = {name: after[name] - before[name] for name in before}
        return canonical(self.family, self.operator.source, along), canonical(self.family, self.operator.target, moved)


def product(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    return float(sum((found * second[name]).sum() for name, found in first.items()))


EXACT = [
    ("gpt2", "even", "hyperclone"),
    ("gpt2", "even", "lemon"),
    ("gpt2", "both", "lemon"),
    ("llama", "even", "hyperclone"),
    ("vit", "even", "hyperclone"),
    ("bert", "even", "hyperclone"),
]


@pytest.mark.parametrize(("name", "target", "width"), EXACT)
def test_gradients_follow_the_transposed_map_of_the_weights(name: str, target: str, width: str) -> None:
    """g = M^T g' holds for the true gradients of an exact start; and for the lifted ones, where the map has no free part."""
    tied = name != "bert"
    changes = {**TARGETS[name][target], **TARGETS[name]["depth"]}
    pair = Pair(start_of(name, config_of(name, tied=tied), changes, width=width, depth="identity"))
    lifted = pair.lifted("scale")
    # transformers computes RMSNorm in float32.
    within = 1e-4 if name == "llama" else 1e-9
    for seed in range(3):
        along, moved = pair.directions(seed)
        wanted = product(pair.old, along)
        assert product(pair.new, moved) == pytest.approx(wanted, rel=within, abs=within)
        if width == "hyperclone":
            assert product(lifted, {name: moved[name] for name in lifted}) == pytest.approx(
                wanted, rel=within, abs=within
            )


@pytest.mark.parametrize(
    ("name", "changes", "width", "exact"),
    [
        ("gpt2", TARGETS["gpt2"]["even"], "hyperclone", ""),
        ("llama", TARGETS["llama"]["even"], "hyperclone", ""),
        ("bert", TARGETS["bert"]["even"], "hyperclone", ""),
        ("vit", TARGETS["vit"]["even"], "hyperclone", ""),
        # Uneven reads: the gradient of a read is that of its copied input, whatever its share of the read is.
        ("gpt2", {"n_inner": 100}, "lemon", "mlp"),
        ("gpt2", {"n_inner": 100}, "net2net", "mlp"),
    ],
)
def test_lifted_gradients_are_those_of_the_target(
    name: str, changes: dict[str, object], width: str, exact: str
) -> None:
    """Where copies are all that grows, the gradient of the target is determined, and `scale` gives it; `copy` does not."""
    pair = Pair(start_of(name, config_of(name, tied=True), changes, width=width))
    lifted, copied = pair.lifted("scale"), pair.lifted("copy")
    assert set(lifted) == set(pair.new)
    within = 1e-4 if name == "llama" else 1e-9
    wrong = 0
    for key, found in pair.new.items():
        if exact in key:
            torch.testing.assert_close(lifted[key], found, rtol=within, atol=within * float(found.abs().max()) + 1e-14)
            wrong += not torch.allclose(copied[key], found, rtol=1e-2, atol=1e-2 * float(found.abs().max()))
    assert wrong > 2


def test_gradients_of_silent_layers_and_of_free_reads() -> None:
    """A new layer starts afresh; a norm's gain gets no gradient in the entries that lemon adds, and the shift does."""
    pair = Pair(
        start_of("gpt2", config_of("gpt2", tied=True), TARGETS["gpt2"]["both"], width="lemon", depth="identity")
    )
    lifted = pair.lifted("scale")
    silent = [layer for layer, quiet in enumerate(pair.operator.silent_layers["layer"]) if quiet]
    assert silent
    for name, found in pair.new.items():
        if any(f".h.{layer}." in name for layer in silent):
            assert name not in lifted
            if "c_proj" not in name:
                assert float(found.abs().max()) < 1e-12
    added = slice(32, None)
    gain, shift = "transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias"
    assert float(pair.new[gain][added].abs().max()) < 1e-9
    assert float(lifted[gain][added].abs().max()) == 0
    ratio = lifted[shift][added].norm() / pair.new[shift][added].norm()
    assert 0.5 < float(ratio) < 2


@pytest.mark.parametrize("maps", ["copy", "scale"])
def test_a_policy_for_new_parts_alone_leaves_the_old_ones_as_they_are(maps: str) -> None:
    """Reads that are divided would change old entries; layers that are copied get the state of their copy."""
    start = start_of("gpt2", config_of("gpt2"), TARGETS["gpt2"]["both"], width="net2net", depth="stack")
    operator, family = initial_operator(start), start.family
    moments = states(family, operator)
    all_parts, old_parts, both = (
        grown_moments(operator, family, moments, policy=policy) for policy in (maps, "carry", f"{maps}-new")
    )
    assert set(both) == set(all_parts) | set(old_parts)
    assert list(both) == [name for name in all_parts if name in both], "in the order of the family's table"
    changed = 0
    for name, part in added_parts(family, operator).items():
        for kind, value in both.get(name, {}).items():
            if kind == "step":
                continue
            old = torch.from_numpy(~part.mask())
            if name in old_parts:
                assert torch.equal(value[old], old_parts[name][kind][old]), name
                changed += not torch.equal(value[old], all_parts[name][kind][old])
            assert torch.equal(value[~old], all_parts[name][kind][~old]), name
    assert changed > 5


# --- every family, every start, every policy --------------------------------------------------------------------------


def states(family: Family, operator: Operator) -> dict[str, dict[str, torch.Tensor]]:
    """A state of AdamW or, for every third row, of Muon; one tensor in five has none."""
    draw = torch.Generator().manual_seed(0)
    found: dict[str, dict[str, torch.Tensor]] = {}
    rows = family.rows_for(operator.source)
    specs = family.tensors_of(rows, operator.source, dtype="F32")
    for number, (row, _, spec) in enumerate(specs):
        first, second = torch.randn(spec.shape, generator=draw), torch.rand(spec.shape, generator=draw)
        if number % 5 != 4:
            adam = {"exp_avg": first, "exp_avg_sq": second, "step": torch.tensor(5.0)}
            found[spec.name] = {"momentum_buffer": first} if rows.index(row) % 3 == 2 else adam
    return found


def check(family: Family, operator: Operator) -> None:
    moments = states(family, operator)
    shapes = {
        spec.name: spec.shape
        for _, _, spec in family.tensors_of(family.rows_for(operator.target), operator.target, dtype="F32")
    }
    for policy in POLICIES:
        grown = grown_moments(operator, family, moments, policy=policy)
        assert not grown or policy != "reset"
        assert set(grown) <= set(shapes)
        for name, state in grown.items():
            assert set(state) in ({"exp_avg", "exp_avg_sq", "step"}, {"momentum_buffer"}), name
            for kind, value in state.items():
                assert value.shape == (() if kind == "step" else shapes[name]), (policy, name, kind)
                assert value.dtype == torch.float32
                assert bool(torch.isfinite(value).all()), (policy, name, kind)
            if "exp_avg_sq" in state:
                assert float(state["step"]) == 5
                assert float(state["exp_avg_sq"].min()) >= 0, (policy, name)


def starts(name: str, changes: Mapping[str, object], pairs: list[tuple[str, str]]) -> list[GrowthPlan]:
    found = []
    for (width, depth), tied in itertools.product(pairs, (True, False)):
        try:
            found.append(start_of(name, config_of(name, tied=tied), changes, width=width, depth=depth))
        except RecipeError:
            continue
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_grows_its_state(name: str) -> None:
    """Without sampling by policy: every width method with one depth method each."""
    pairs = list(zip(WIDTHS, itertools.cycle(DEPTHS), strict=False))
    found = starts(name, {**TARGETS[name]["even"], **TARGETS[name]["depth"]}, pairs)
    found += starts(name, TARGETS[name]["uneven"], [("mean-preserving", "copy"), ("zero", "copy"), ("lemon", "copy")])
    assert len(found) > 4
    for start in found[::2]:
        check(start.family, initial_operator(start))
    first = found[0]
    check(first.family, learnable(initial_operator(first), first.family))
    check(first.family, random_operator(first))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_start_grows_its_state(name: str) -> None:
    """Slow: every seventh pair of methods, another seventh for each family, at the target that grows in both directions."""
    first = list(CONFIGS).index(name) % 7
    found = starts(name, TARGETS[name]["both"], list(itertools.product(WIDTHS, DEPTHS))[first::7])
    assert found
    for start in found:
        check(start.family, initial_operator(start))


@pytest.mark.parametrize("keying", ["source", "target"])
def test_maps_of_single_layers_and_ties_are_followed(keying: str) -> None:
    config = config_of("gpt2", tied=True)
    for tie in (None, "paper"):
        start = start_of(
            "gpt2", config, TARGETS["gpt2"]["both"], width="net2net", depth="stack", keying=keying, tie=tie
        )
        check(start.family, initial_operator(start))
        check(start.family, learnable(initial_operator(start), start.family))


def test_an_untied_head_takes_the_state_of_the_embedding() -> None:
    config = config_of("gpt2", tied=True)
    start = start_of("gpt2", config, {**TARGETS["gpt2"]["even"], "tie_word_embeddings": False}, width="lemon")
    moments = states(start.family, initial_operator(start))
    for policy in ("carry", "copy", "scale"):
        grown = grown_moments(initial_operator(start), start.family, moments, policy=policy)
        assert "lm_head.weight" in grown


def test_a_state_that_cannot_grow_is_refused() -> None:
    start = start_of("gpt2", config_of("gpt2", tied=True), TARGETS["gpt2"]["even"], width="lemon")
    operator, name = initial_operator(start), "transformer.wte.weight"
    with pytest.raises(RecipeError, match="no policy 'keep'"):
        grown_moments(operator, start.family, {}, policy="keep")
    with pytest.raises(SourceError, match="exp_avg_sq_row"):
        grown_moments(operator, start.family, {name: {"exp_avg_sq_row": torch.ones(3)}}, policy="carry")
    with pytest.raises(SourceError, match="another shape"):
        grown_moments(operator, start.family, {name: {"exp_avg": torch.ones(3)}}, policy="carry")


# --- the first step ---------------------------------------------------------------------------------------------------


def trained(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    tokens = inputs_of(model)["input_ids"]
    for step in range(steps):
        optimizer.zero_grad()
        ids = (tokens + step) % 29
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("width", "policy"), [("lemon", "carry"), ("direct", "carry"), ("zero", "scale"), ("direct", "copy")]
)
def test_no_entry_jumps_at_the_first_step_after_growth(width: str, policy: str) -> None:
    """With moments of zero beside a step count of the source a new entry would step 3.2 times the learning rate."""
    start = start_of("gpt2", config_of("gpt2", tied=True), TARGETS["gpt2"]["both"], width=width, depth="identity")
    source = model_of(dict(start.source)).train(False)
    # A short memory reaches in 60 steps the averages that a long training has.
    optimizer = torch.optim.AdamW(source.parameters(), lr=RATE, betas=(0.9, 0.9), weight_decay=0.0)
    trained(source, optimizer, 60)
    moments = {
        name: {**optimizer.state[parameter], "step": torch.tensor(5000.0)}
        for name, parameter in source.named_parameters()
    }
    operator = initial_operator(start, dtype=np.float64)
    target = target_model(operator, parameters_of(source))
    grown = grown_moments(operator, start.family, moments, policy=policy, dtype=torch.float64)
    after = torch.optim.AdamW(target.parameters(), lr=RATE, weight_decay=0.0)
    for name, parameter in target.named_parameters():
        if name in grown:
            after.state[parameter] = grown[name]
    before = {name: parameter.detach().clone() for name, parameter in target.named_parameters()}
    trained(target, after, 1)
    largest = max(float((found - before[name]).abs().max()) for name, found in parameters_of(target).items())
    print(f"{width} {policy}: largest first step {largest / RATE:.3f} of the learning rate")
    assert largest < 2.5 * RATE
    assert {float(state["step"]) for state in grown.values()} == {5001.0}


def test_momentum_of_new_entries_is_zero() -> None:
    start = start_of("gpt2", config_of("gpt2", tied=True), TARGETS["gpt2"]["even"], width="lemon")
    name = "transformer.h.0.mlp.c_fc.weight"
    grown = grown_moments(
        initial_operator(start), start.family, {name: {"momentum_buffer": torch.ones(16, 64)}}, policy="carry"
    )
    momentum = grown[name]["momentum_buffer"]
    assert float(momentum[:16, :64].min()) == 1
    assert float(momentum.sum()) == 16 * 64
