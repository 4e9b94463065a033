"""Families: tables that claim every tensor once, at any size, under every name a checkpoint is found with."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny import CONFIGS, TARGETS, config_of, library_config, model_of

from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.families import FAMILIES
from ligo_convert.growth import drawn_values
from ligo_convert.models import LibraryModel
from ligo_convert.tensors import TensorSpec


def llama(width: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, object]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


# Real configs, at their real sizes: what the public checkpoints have.
FULL_SIZE = {
    "gpt2": [
        {},
        {"n_embd": 1024, "n_layer": 24, "n_head": 16},
        {"n_embd": 1280, "n_layer": 36, "n_head": 20},
        {"n_embd": 1600, "n_layer": 48, "n_head": 25},
        {"n_inner": 2048, "tie_word_embeddings": False},
    ],
    "llama": [
        {},
        {**llama(8192, 28672, 80, 64, 8), "vocab_size": 128256},
        {**llama(2048, 8192, 16, 32, 8), "vocab_size": 128256, "tie_word_embeddings": True},
        {**llama(576, 1536, 30, 9, 3), "attention_bias": True, "mlp_bias": True},
    ],
}


def specs_of(config: dict[str, object], *, prefix: str | None = None) -> dict[str, TensorSpec]:
    """The tensors of a tiny model as a checkpoint has them."""
    names = {name: tuple(tensor.shape) for name, tensor in model_of(config).named_parameters()}
    if prefix is not None:
        names = {name.removeprefix(prefix): shape for name, shape in names.items()}
    return {name: TensorSpec(name=name, dtype="F32", shape=shape) for name, shape in names.items()}


@pytest.mark.parametrize(
    ("family", "changes"), [(family, changes) for family, cases in FULL_SIZE.items() for changes in cases]
)
def test_the_table_is_the_librarys_model_at_real_sizes(family: str, changes: dict[str, object]) -> None:
    found = FAMILIES[family]
    config = {"model_type": family, **found.defaults, **changes}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(library_config(config))
    parameters = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    rows = found.rows_for(config)
    assert {spec.name: spec.shape for _, _, spec in found.tensors_of(rows, config, dtype="F32")} == parameters
    assert found.parameters(rows, config) == sum(tensor.numel() for tensor in model.parameters())


@pytest.mark.parametrize("family", CONFIGS)
def test_defaults_are_the_librarys(family: str) -> None:
    defaults = transformers.AutoConfig.for_model(family).to_dict()
    for key, value in FAMILIES[family].defaults.items():
        # What the library works out for itself stands as None in the table.
        assert value is None or defaults[key] == value, key


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_name_a_checkpoint_is_found_with_is_claimed(family: str, tied: bool) -> None:
    found, config = FAMILIES[family], config_of(family, tied=tied)
    with_prefix = found.check(config, specs_of(config), label="source")
    without = found.check(config, specs_of(config, prefix=found.optional_prefix), label="source")
    assert set(with_prefix.stored) == set(without.stored)
    assert with_prefix.rows == without.rows
    assert ("lm_head.weight" in with_prefix.stored) == (not tied)


def test_a_tied_head_may_be_on_disk_too_or_alone() -> None:
    found, config = FAMILIES["gpt2"], config_of("gpt2")
    specs = specs_of(config)
    head = TensorSpec(name="lm_head.weight", dtype="F32", shape=(29, 16))
    both = found.check(config, {**specs, head.name: head}, label="source")
    assert both.copies == (("lm_head.weight", "transformer.wte.weight"),)
    alone = found.check(config, {**{k: v for k, v in specs.items() if "wte" not in k}, head.name: head}, label="source")
    assert alone.stored["transformer.wte.weight"].name == "lm_head.weight"


def test_buffers_of_old_checkpoints_are_passed_over_and_named() -> None:
    found, config = FAMILIES["gpt2"], config_of("gpt2")
    specs = specs_of(config, prefix="transformer.")
    for name in ("h.0.attn.bias", "h.1.attn.masked_bias"):
        specs[name] = TensorSpec(name=name, dtype="BOOL", shape=(1, 1, 12, 12))
    assert found.check(config, specs, label="source").ignored == ("h.0.attn.bias", "h.1.attn.masked_bias")


def broken(change) -> tuple[dict[str, object], dict[str, TensorSpec]]:
    config = config_of("gpt2")
    specs = specs_of(config)
    change(specs)
    return config, specs


def _with(name: str, shape: tuple[int, ...], dtype: str = "F32"):
    return lambda specs: specs.update({name: TensorSpec(name=name, dtype=dtype, shape=shape)})


BROKEN = [
    (_with("transformer.h.0.attn.q_norm.weight", (8,)), r"no row claims transformer.h.0.attn.q_norm.weight"),
    (_with("transformer.h.2.ln_1.weight", (16,)), r"no row claims transformer.h.2.ln_1.weight"),
    (_with("wte.weight", (29, 16)), "a tensor is there twice"),
    (lambda specs: specs.pop("transformer.ln_f.bias"), "in no weight file"),
    (_with("transformer.wpe.weight", (11, 16)), "another shape"),
    (_with("transformer.wpe.weight", (12, 16), "I8"), "no floating-point tensor"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_checkpoint_that_does_not_fit_is_refused(change, message: str) -> None:
    config, specs = broken(change)
    with pytest.raises(SourceError, match=message) as caught:
        FAMILIES["gpt2"].check(config, specs, label="source")
    assert "source" in str(caught.value)


def test_an_unclaimed_tensor_names_the_nearest_row() -> None:
    config, specs = broken(_with("transformer.h.0.mlp.c_fcx.weight", (16, 64)))
    with pytest.raises(SourceError) as caught:
        FAMILIES["gpt2"].check(config, specs, label="source")
    assert "nearest row: transformer.h.{layer}.mlp.c_fc.weight" in str(caught.value)


REFUSED = [
    ("gpt2", {"n_embed": 32}, "did you mean 'n_embd'"),
    ("gpt2", {"n_embd": 8}, "smaller than its source along embed"),
    ("gpt2", {"n_layer": 1}, "smaller than its source along layer"),
    ("gpt2", {"n_embd": 33, "n_head": 2}, "n_embd / n_head is not a whole number"),
    ("gpt2", {"n_embd": 24, "n_head": 4}, "smaller than its source along head_dim"),
    ("gpt2", {"n_embd": "24"}, "must be a positive integer"),
    ("gpt2", {"vocab_size": 31}, "vocab cannot grow"),
    ("gpt2", {"n_positions": 24}, "position cannot grow"),
    ("gpt2", {"dtype": "bfloat16"}, "set output.dtype"),
    ("gpt2", {"model_type": "llama"}, "grows within its family"),
    ("gpt2", {"add_cross_attention": True}, "not supported"),
    ("llama", {"num_key_value_heads": 1}, "smaller than its source along kv_heads"),
    ("llama", {"num_attention_heads": 6, "num_key_value_heads": 4, "hidden_size": 24}, "not a whole number"),
    ("llama", {"hidden_size": 32, "head_dim": 8}, "head_dim must stay"),
    ("llama", {"hidden_size": 18}, "hidden_size / num_attention_heads is not a whole number"),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_a_target_that_cannot_be_grown_into_is_refused(family: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        FAMILIES[family].resize(config_of(family), changes)


def test_an_untied_head_cannot_become_tied() -> None:
    with pytest.raises(RecipeError, match="cannot become tied"):
        FAMILIES["gpt2"].resize(config_of("gpt2", tied=False), {"tie_word_embeddings": True})


@pytest.mark.parametrize("family", CONFIGS)
def test_sizes_agree_with_the_librarys_config_class(family: str) -> None:
    for changes in TARGETS[family].values():
        config = FAMILIES[family].resize(config_of(family), changes)
        LibraryModel(FAMILIES[family], config).check_table(FAMILIES[family].rows_for(config))


@pytest.mark.parametrize("family", CONFIGS)
def test_drawn_weights_are_spread_as_the_library_spreads_them(family: str) -> None:
    """The same deviation, row by row; the numbers themselves are drawn by another generator."""
    sizes = {"gpt2": {"n_embd": 128}, "llama": {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256}}[family]
    config = {**config_of(family, initializer_range=0.05), **sizes}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(library_config(config))
    library = {name: tensor.detach() for name, tensor in model.named_parameters()}
    found = FAMILIES[family]
    for row, layer, spec in found.tensors_of(found.rows_for(config), config, dtype="F32"):
        ours = torch.from_numpy(drawn_values(found, config, row, layer, spec.shape, 0))
        theirs = library[spec.name]
        assert abs(float(ours.mean() - theirs.mean())) < 0.01, spec.name
        # A deviation estimated from n values is good to about 1/sqrt(2n): 5 of those.
        assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=5 / (2 * spec.elements) ** 0.5, abs=1e-9), (
            spec.name
        )
