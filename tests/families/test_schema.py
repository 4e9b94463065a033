"""Families: tables that claim every tensor once, at any size, under every name a checkpoint is found with."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
import transformers
from support.tiny import CONFIGS, FULL_SIZE, TARGETS, config_of, empty_model, family_of, model_of, start_of, state_of

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.errors import RecipeError, SourceError
from ligo_convert.families.configs import flat_config, with_tokens, written_config
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.parameters import model_parameters
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import Family
from ligo_convert.growth.apply import drawn_values
from ligo_convert.training.functional_model import LibraryModel, table_parameters
from ligo_convert.training.model_tensors import parameters_of

CAUSAL = [name for name in CONFIGS if name in FAMILIES and FAMILIES[name].task == "causal-lm"]


def specs_of(config: dict[str, object], *, prefix: str | None = None) -> dict[str, TensorSpec]:
    """The tensors of a tiny model as a checkpoint has them."""
    names = {name: tuple(tensor.shape) for name, tensor in state_of(config, model_of(config)).items()}
    if prefix is not None:
        names = {name.removeprefix(prefix): shape for name, shape in names.items()}
    return {name: TensorSpec(name=name, dtype="F32", shape=shape) for name, shape in names.items()}


@pytest.mark.parametrize(
    ("family", "changes"), [(family, changes) for family, cases in FULL_SIZE.items() for changes in cases]
)
def test_the_table_is_the_librarys_model_at_real_sizes(family: str, changes: dict[str, object]) -> None:
    config = {"model_type": FAMILIES[family].model_type, **FAMILIES[family].defaults, **changes}
    found = family_of(config)
    with torch.device("meta"):
        model = empty_model(config)
    parameters = {name: tuple(tensor.shape) for name, tensor in table_parameters(found, model).items()}
    rows = found.rows_for(config)
    table = {
        spec.name: torch.empty(spec.shape, device="meta") for _, _, spec in found.tensors_of(rows, config, dtype="F32")
    }
    made = parameters_of(model_parameters(found, config), table)
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == parameters
    assert found.parameters(rows, config) == sum(tensor.numel() for tensor in model.parameters())


@pytest.mark.parametrize("family", [name for name, found in FAMILIES.items() if found.library == "transformers"])
def test_defaults_are_the_librarys(family: str) -> None:
    made = transformers.AutoConfig.for_model(FAMILIES[family].model_type)
    # Some classes have a value that they do not write.
    defaults = {"tie_word_embeddings": getattr(made, "tie_word_embeddings", None), **made.to_dict()}
    for key, value in FAMILIES[family].defaults.items():
        # What the library works out for itself stands as None in the table.
        assert value is None or defaults[key] == value, key


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", CAUSAL)
def test_every_name_a_checkpoint_is_found_with_is_claimed(family: str, tied: bool) -> None:
    found, config = FAMILIES[family], config_of(family, tied=tied)
    with_prefix = claim_tensors(found, config, specs_of(config), label="source")
    without = claim_tensors(found, config, specs_of(config, prefix=found.optional_prefix), label="source")
    assert set(with_prefix.stored) == set(without.stored)
    assert with_prefix.rows == without.rows
    assert ("lm_head.weight" in with_prefix.stored) == (not tied)


def test_a_tied_head_may_be_on_disk_too_or_alone() -> None:
    found, config = FAMILIES["gpt2"], config_of("gpt2")
    specs = specs_of(config)
    head = TensorSpec(name="lm_head.weight", dtype="F32", shape=(29, 16))
    both = claim_tensors(found, config, {**specs, head.name: head}, label="source")
    assert both.copies == (("lm_head.weight", "transformer.wte.weight"),)
    alone = claim_tensors(
        found, config, {**{k: v for k, v in specs.items() if "wte" not in k}, head.name: head}, label="source"
    )
    assert alone.stored["transformer.wte.weight"].name == "lm_head.weight"


def test_buffers_of_old_checkpoints_are_passed_over_and_named() -> None:
    found, config = FAMILIES["gpt2"], config_of("gpt2")
    specs = specs_of(config, prefix="transformer.")
    for name in ("h.0.attn.bias", "h.1.attn.masked_bias"):
        specs[name] = TensorSpec(name=name, dtype="BOOL", shape=(1, 1, 12, 12))
    assert claim_tensors(found, config, specs, label="source").ignored == ("h.0.attn.bias", "h.1.attn.masked_bias")


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
    (_with("wte.weight", (29, 16)), "a tensor is stored twice"),
    (lambda specs: specs.pop("transformer.ln_f.bias"), "in no weight file"),
    (_with("transformer.wpe.weight", (11, 16)), "does not have the shape that config.json gives"),
    (_with("transformer.wpe.weight", (12, 16), "I8"), "not a floating-point tensor"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_checkpoint_that_does_not_fit_is_refused(change, message: str) -> None:
    config, specs = broken(change)
    with pytest.raises(SourceError, match=message) as caught:
        claim_tensors(FAMILIES["gpt2"], config, specs, label="source")
    assert "source" in str(caught.value)


def test_an_unclaimed_tensor_names_the_nearest_row() -> None:
    config, specs = broken(_with("transformer.h.0.mlp.c_fcx.weight", (16, 64)))
    with pytest.raises(SourceError) as caught:
        claim_tensors(FAMILIES["gpt2"], config, specs, label="source")
    assert "nearest row: transformer.h.{layer}.mlp.c_fc.weight" in str(caught.value)


REFUSED = [
    ("gpt2", {"n_embed": 32}, "did you mean 'n_embd'"),
    ("gpt2", {"n_embd": 8}, "smaller than its source along embed"),
    ("gpt2", {"n_layer": 1}, "smaller than its source along layer"),
    ("gpt2", {"n_embd": 33, "n_head": 2}, "n_embd / n_head is not a whole number"),
    ("gpt2", {"n_embd": 24, "n_head": 4}, "smaller than its source along head_dim"),
    ("gpt2", {"n_embd": "24"}, "must be a positive number"),
    ("gpt2", {"vocab_size": 31}, "vocab cannot grow"),
    ("gpt2", {"n_positions": 24}, "position cannot grow"),
    ("gpt2", {"dtype": "bfloat16"}, "set output.dtype"),
    ("gpt2", {"model_type": "llama"}, "grows within its family"),
    ("gpt2", {"add_cross_attention": True}, "not supported"),
    ("llama", {"num_key_value_heads": 1}, "smaller than its source along kv_heads"),
    ("llama", {"num_attention_heads": 6, "num_key_value_heads": 4, "hidden_size": 24}, "not a whole number"),
    ("llama", {"hidden_size": 32, "head_dim": 8}, "head_dim must keep its size"),
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
        config = start_of(family, config_of(family), changes, width="net2net", depth="identity").target
        LibraryModel(family_of(config), config).check_table(family_of(config).rows_for(config))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "bert"])
def test_drawn_weights_are_spread_as_the_library_spreads_them(family: str) -> None:
    """The same deviation, row by row; the numbers themselves are drawn by another generator."""
    llama = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256}
    bert = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 64, "max_position_embeddings": 64}
    sizes = {"gpt2": {"n_embd": 128}, "llama": llama, "qwen3": llama, "bert": bert}[family]
    config = {**config_of(family, initializer_range=0.05), **sizes}
    torch.manual_seed(0)
    model = empty_model(config)
    library = {name: tensor.detach() for name, tensor in model.named_parameters()}
    found = family_of(config)
    for row, layer, spec in found.tensors_of(found.rows_for(config), config, dtype="F32"):
        ours = torch.from_numpy(drawn_values(found, config, row, layer, spec.shape, 0))
        theirs = library[spec.name]
        assert abs(float(ours.mean() - theirs.mean())) < 0.01, spec.name
        # A deviation estimated from n values is good to about 1/sqrt(2n): 5 of those.
        assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=5 / (2 * spec.elements) ** 0.5, abs=1e-9), (
            spec.name
        )


ARCHITECTURES = [(name, found) for found in FAMILIES.values() for name in found.architectures]


@pytest.mark.parametrize(
    ("architecture", "found"), ARCHITECTURES, ids=lambda item: item if isinstance(item, str) else ""
)
def test_an_architecture_that_is_listed_is_what_timm_builds(architecture: str, found: Family) -> None:
    import timm

    config = flat_config({"architecture": architecture})
    with torch.device("meta"):
        model = timm.create_model(architecture)
    rows = found.rows_for(config)
    table = {spec.name: spec.shape for _, _, spec in found.tensors_of(rows, config, dtype="F32")}
    assert table == {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def test_every_cait_and_deit_of_timm_is_listed() -> None:
    import timm

    names = {name for name in timm.list_models() if name.split("_")[0] in ("cait", "deit", "deit3")}
    assert names == {*FAMILIES["cait"].architectures, *FAMILIES["deit"].architectures}


@pytest.mark.slow
def test_every_plain_vit_of_timm_is_listed() -> None:
    """With a norm after the blocks, whole patches, and no parameters but the table's: timm has no such model that is not listed."""
    import timm
    from timm.layers import Mlp
    from timm.models.vision_transformer import Block, VisionTransformer

    known = {name for found in FAMILIES.values() for name in found.architectures}
    tables = [FAMILIES[name].table for name in ("vit", "vit_map")]
    ours = {re.sub(r"\{\w+\}", "#", row.pattern) for table in tables for row in table}
    left_out = []
    for name in timm.list_models(module="vision_transformer"):
        if name in known:
            continue
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # some names are deprecated, and say so
            model = timm.create_model(name)
        block = model.blocks[0]
        if type(model) is not VisionTransformer or type(block) is not Block or type(block.mlp) is not Mlp:
            continue
        theirs = {re.sub(r"blocks\.\d+\.", "blocks.#.", parameter) for parameter, _ in model.named_parameters()}
        # RMSNorm has no shift.
        if theirs <= ours and theirs & {"norm.bias", "fc_norm.bias"}:
            left_out.append(name)
    # Their images are no whole number of patches.
    assert left_out == ["vit_so400m_patch14_siglip_384", "vit_so400m_patch14_siglip_gap_384"]


@pytest.mark.slow
def test_every_plain_eva_of_timm_is_listed() -> None:
    """With a norm after the blocks, a plain feed-forward layer, and no parameters but the table's."""
    import timm
    from timm.layers import Mlp

    ours = {re.sub(r"\{\w+\}", "#", row.pattern) for row in FAMILIES["eva"].table}
    left_out = []
    for name in set(timm.list_models(module="eva")) - set(FAMILIES["eva"].architectures):
        with torch.device("meta"):
            model = timm.create_model(name)
        theirs = {re.sub(r"blocks\.\d+\.", "blocks.#.", parameter) for parameter, _ in model.named_parameters()}
        # Blocks that normalise after the branch have the same names.
        post = type(model.blocks[0]).__name__ == "EvaBlockPostNorm"
        if theirs <= ours and type(model.blocks[0].mlp) is Mlp and not post:
            left_out.append(name)
    assert left_out == []


def test_what_a_listed_eva_computes_is_what_the_config_says() -> None:
    """Keys without parameters: pooling, kinds of positions, and the epsilon that tells its architectures apart."""
    import timm

    ropes = {"cat": "RotaryEmbeddingCat", "dinov3": "RotaryEmbeddingDinoV3"}
    for name in FAMILIES["eva"].architectures:
        config = flat_config({"architecture": name})
        with torch.device("meta"):
            model = timm.create_model(name)
        assert model.global_pool == config["global_pool"], name
        assert isinstance(model.fc_norm, torch.nn.Identity) != config["use_fc_norm"], name
        assert model.blocks[0].norm1.eps == config["norm_epsilon"], name
        assert (model.rope is not None) == config["use_rot_pos_emb"], name
        if model.rope is not None:
            assert type(model.rope).__name__ == ropes[str(config["rope_type"])], name
            assert model.rope.temperature == config["rope_temperature"], name
            assert model.blocks[0].attn.rotate_half == config["rope_rotate_half"], name


@pytest.mark.slow
def test_what_a_listed_architecture_computes_is_what_the_config_says() -> None:
    """Keys without parameters: pooling, activation, and which norm is meant."""
    import timm

    activations = {"gelu": "GELU", "gelu_tanh": "GELUTanh"}
    for name in (*FAMILIES["vit"].architectures, *FAMILIES["vit_map"].architectures):
        config = flat_config({"architecture": name})
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            model = timm.create_model(name)
        assert model.global_pool == config["global_pool"], name
        assert type(model.blocks[0].mlp.act).__name__ == activations[str(config["activation"])], name
        assert isinstance(model.fc_norm, torch.nn.Identity) != config["fc_norm"], name
        assert (model.num_classes, model.num_reg_tokens) == (config["num_classes"], config["reg_tokens"]), name
        if config["global_pool"] == "map":
            assert model.pool_include_prefix == config["pool_include_prefix"], name


@pytest.mark.parametrize(
    ("stated", "built"),
    [
        ({}, {"global_pool": "token", "fc_norm": False, "prefix_tokens": 1}),
        ({"global_pool": "avg"}, {"global_pool": "avg", "fc_norm": True, "prefix_tokens": 1}),
        ({"global_pool": "avg", "fc_norm": None}, {"global_pool": "avg", "fc_norm": True}),
        ({"global_pool": "avg", "fc_norm": False, "class_token": False}, {"fc_norm": False, "prefix_tokens": 0}),
        ({"fc_norm": True}, {"global_pool": "token", "fc_norm": True}),
        ({"reg_tokens": 4}, {"reg_tokens": 4, "prefix_tokens": 5}),
        ({"reg_tokens": 4, "no_embed_class": True}, {"prefix_tokens": 0}),
        ({"num_classes": 0}, {"num_classes": 0}),
    ],
)
def test_arguments_of_timm_are_read_and_written_as_timm_reads_them(
    stated: dict[str, object], built: dict[str, object]
) -> None:
    import timm

    sizes = {"img_size": 32, "embed_dim": 24, "depth": 1}
    config = flat_config({"architecture": "vit_tiny_patch16_224", "model_args": {**sizes, **stated}})
    assert {key: config[key] for key in built} == built
    family = FAMILIES["vit"].for_config(config)
    assert (family.task == "image-encoder") == (stated.get("num_classes") == 0)
    made = written_config(family, config, {})
    again = flat_config(made)
    assert {key: again[key] for key in FAMILIES["vit"].defaults if key != "img_size"} == {
        key: config[key] for key in FAMILIES["vit"].defaults if key != "img_size"
    }
    table = {spec.name: spec.shape for _, _, spec in family.tensors_of(family.rows_for(config), config, dtype="F32")}
    with torch.device("meta"):
        for arguments in ({**sizes, **stated}, {**made["model_args"], "num_classes": made["num_classes"]}):
            model = timm.create_model("vit_tiny_patch16_224", **arguments)
            assert table == {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
            assert model.global_pool == config["global_pool"]


def test_a_token_that_goes_takes_its_position_along() -> None:
    family, config = FAMILIES["vit"], config_of("vit")
    pooled = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    changes = with_tokens(family, config, pooled)
    assert changes == {**pooled, "prefix_tokens": 0}
    with pytest.raises(RecipeError, match="position cannot grow"):
        family.resize(config, changes)
    assert with_tokens(family, config, {"depth": 9}) == {"depth": 9}
    llama = config_of("llama")
    assert with_tokens(FAMILIES["llama"], llama, {"hidden_size": 32}) == {"hidden_size": 32}


def test_a_pooling_beside_the_arguments_is_no_argument() -> None:
    with pytest.raises(SourceError, match="is not what timm builds"):
        flat_config({"architecture": "vit_tiny_patch16_224", "global_pool": "avg"})


@pytest.mark.parametrize(("stored", "classes"), [(True, 0), (False, 5)])
def test_a_head_that_the_config_denies_or_lacks_is_refused(stored: bool, classes: int) -> None:
    config = config_of("vit")
    specs = {name: spec for name, spec in specs_of(config).items() if stored or not name.startswith("head")}
    wrong = {**config, "num_classes": classes}
    with pytest.raises(SourceError, match="no row claims head" if stored else "in no weight file") as caught:
        claim_tensors(FAMILIES["vit"], wrong, specs, label="source")
    assert ("num_classes" in str(caught.value.hint)) == stored
    assert claim_tensors(FAMILIES["vit"], {**config, "num_classes": 5 if stored else 0}, specs, label="source").rows


# Which class a checkpoint is of, by what it holds.
ENCODERS = [
    ("BertForMaskedLM", "", {"lm"}),
    ("BertForPreTraining", "", {"pooler", "lm", "nsp"}),
    ("BertModel", "bert.", {"pooler"}),
    ("RobertaForMaskedLM", "", {"lm"}),
    ("RobertaModel", "roberta.", {"pooler"}),
]


@pytest.mark.parametrize(("architecture", "prefix", "parts"), ENCODERS)
@pytest.mark.parametrize("old_names", [False, True])
def test_an_encoder_is_known_by_what_it_holds(architecture: str, prefix: str, parts: set[str], old_names: bool) -> None:
    family = "roberta" if architecture.startswith("Roberta") else "bert"
    config = {**config_of(family), "architectures": [architecture]}
    specs = specs_of(config)
    if old_names:
        rename = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        specs = {_renamed(name, rename): spec for name, spec in specs.items()}
        specs = {name: TensorSpec(name=name, dtype="F32", shape=spec.shape) for name, spec in specs.items()}
    position_ids = f"{family}.embeddings.position_ids".removeprefix(prefix)
    specs[position_ids] = TensorSpec(name=position_ids, dtype="I64", shape=(1, 16))
    # What config.json claims does not decide: a sentence encoder often still names the class it was cut from.
    found = claim_tensors(FAMILIES[family], {**config, "architectures": None}, specs, label="source")
    assert found.family.architecture == architecture
    assert set(found.family.chosen.parts) == parts
    assert found.ignored == (position_ids,)
    assert len(found.stored) == len(specs) - 1


def _renamed(name: str, endings: dict[str, str]) -> str:
    return next((name.removesuffix(old) + new for old, new in endings.items() if name.endswith(old)), name)


def test_an_encoder_without_a_pooler_and_one_with_a_pooler_beside_its_head() -> None:
    config = {**config_of("bert"), "architectures": ["BertModel"]}
    bare = {name: spec for name, spec in specs_of(config).items() if not name.startswith("pooler")}
    found = claim_tensors(FAMILIES["bert"], config, bare, label="source")
    assert (found.family.architecture, found.family.chosen.parts) == ("BertModel", ())
    assert found.family.chosen.options == {"add_pooling_layer": False}
    # Old RoBERTa checkpoints carry a pooler that no class has beside the head.
    config = config_of("roberta")
    specs = specs_of(config)
    for name, shape in {"roberta.pooler.dense.weight": (16, 16), "roberta.pooler.dense.bias": (16,)}.items():
        specs[name] = TensorSpec(name=name, dtype="F32", shape=shape)
    found = claim_tensors(FAMILIES["roberta"], config, specs, label="source")
    assert found.family.architecture == "RobertaForMaskedLM"
    assert found.left_out == ("roberta.pooler.dense.weight", "roberta.pooler.dense.bias")


def test_keys_that_say_nothing_while_a_switch_is_off_may_change() -> None:
    config = config_of("qwen3", sliding_window=4, max_window_layers=1)
    found = family_of(config)
    assert found.changed_function(config, {**config, "max_window_layers": 2, "sliding_window": 8}) == ()
    on = {**config, "use_sliding_window": True}
    assert "max_window_layers" in found.changed_function(on, {**on, "max_window_layers": 2})


def test_a_quantised_checkpoint_is_called_so() -> None:
    config = config_of("llama", quantization_config={"quant_method": "gptq"})
    name = "model.layers.0.mlp.up_proj.qweight"
    specs = {**specs_of(config), name: TensorSpec(name=name, dtype="I32", shape=(2, 24))}
    with pytest.raises(SourceError, match="belongs to a quantised model"):
        claim_tensors(FAMILIES["llama"], config, specs, label="source")
    packed = {**specs_of(config), "lm_head.weight": TensorSpec(name="lm_head.weight", dtype="U8", shape=(7, 16))}
    with pytest.raises(SourceError, match="not a floating-point tensor"):
        claim_tensors(FAMILIES["llama"], {**config, "tie_word_embeddings": False}, packed, label="source")

    for key, settings, words in (
        ("quantization_config", {"quant_method": "gptq"}, r"quantization_config \(gptq\).*remove quantization_config"),
        ("quantization_config", {"bits": 4}, "quantization_config: quantised"),
        ("quantization", {"bits": 4}, "remove quantization from"),
        ("compression_config", {"format": "x"}, "remove compression_config"),
    ):
        # Floating-point weights that a config calls quantised.
        config = config_of("llama", **{key: settings})
        with pytest.raises(SourceError, match=f"(?s){words}"):
            claim_tensors(FAMILIES["llama"], config, specs_of(config), label="source")
    config = config_of("llama", quantization_config=None)
    assert claim_tensors(FAMILIES["llama"], config, specs_of(config), label="source").ignored == ()


def test_positions_that_cannot_be_counted_are_the_sources_fault() -> None:
    with pytest.raises(SourceError, match="pad_token_id"):
        FAMILIES["roberta"].check_config(config_of("roberta", pad_token_id=None), where="config.json")
