"""`grow` on models as callers hold them: built with other settings than the config's, frozen, in a mode, with data of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from support.tiny import TARGETS, config_of, family_of, model_of

import ligo_convert
from ligo_convert.errors import SourceError
from ligo_convert.training.functional_model import LibraryModel

IDS = torch.randint(0, 29, (8, 8), generator=torch.Generator().manual_seed(0))


def timm_model(name: str = "vit_tiny_patch16_224", **more: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.create_model(name, **sizes, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tiny_epsilon(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 0.5


OTHER: dict[str, Callable[[], torch.nn.Module]] = {
    "an activation of the constructor": lambda: timm_model(act_layer="relu"),
    "an epsilon of the constructor": lambda: timm_model(
        norm_layer=lambda *args, **more: torch.nn.LayerNorm(*args, **{**more, "eps": 0.5})
    ),
    "an activation in cait": lambda: timm_model("cait_xxs24_224", act_layer=torch.nn.ReLU, depth_token_only=1),
    "an epsilon set later": lambda: _changed(tiny_epsilon),
    "an activation set later": lambda: _changed(
        lambda model: setattr(model.transformer.h[1].mlp, "act", torch.nn.ReLU())
    ),
}


def _changed(change: Callable[[Any], None]) -> torch.nn.Module:
    model = model_of(config_of("gpt2"), dtype=torch.float32)
    change(model)
    return model


@pytest.mark.parametrize("what", OTHER)
@pytest.mark.parametrize("copies", [False, True])
def test_a_model_that_its_config_does_not_describe_is_refused(what: str, copies: bool) -> None:
    model = OTHER[what]().train()
    changes = {"n_layer": 3} if isinstance(model, transformers.PreTrainedModel) else {"depth": 3}
    methods = {"width": "copy", "depth": "stack"} if copies else {}
    with pytest.raises(SourceError, match="computes something else than"):
        ligo_convert.grow(model, changes, **methods)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "bert", "bert encoder", "vit", "vit encoder", "vit pooled", "cait", "deit"]
)
def test_a_model_that_its_config_describes_is_grown_and_left_as_it_was(name: str, dtype: torch.dtype) -> None:
    model = model_of(config_of(name), dtype=dtype).train()
    frozen = (
        next(module for module in model.modules() if isinstance(module, torch.nn.Dropout)) if name == "bert" else None
    )
    if frozen is not None:
        frozen.eval()
    modes = [module.training for module in model.modules()]
    ligo_convert.grow(model, TARGETS[name]["depth"])
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("kind", [{"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}])
def test_a_model_of_the_library_remembers_no_sequence(kind: dict[str, object]) -> None:
    config = config_of("llama", rope_parameters={"rope_theta": 10000.0, **kind})
    model: Any = model_of(config, dtype=torch.float32)
    library, parameters = LibraryModel(family_of(config), config), dict(model.named_parameters())
    parameters = {name: parameter for name, parameter in parameters.items() if name in library.shapes}
    long = {
        "input_ids": torch.randint(0, 29, (1, 80))
    }  # longer than the model's 32 positions, so that dynamic ones change
    short = {"input_ids": IDS}
    with torch.no_grad():
        expected = [model(**batch).logits for batch in (short, long)]
        for batch, logits in zip((short, long, long, short), (*expected, *reversed(expected)), strict=True):
            torch.testing.assert_close(library(parameters, batch), logits)
        fresh = model_of(config, dtype=torch.float32)
        ligo_convert.grow(fresh, TARGETS["llama"]["depth"])
        torch.testing.assert_close(fresh(**long).logits, expected[1])


def test_drop_rates_are_kept() -> None:
    rates = {"drop_rate": 0.1, "pos_drop_rate": 0.2, "patch_drop_rate": 0.25, "proj_drop_rate": 0.3}
    rates |= {"attn_drop_rate": 0.4, "drop_path_rate": 0.5}
    grown: Any = ligo_convert.grow(timm_model(**rates), {"depth": 4, "embed_dim": 24, "num_heads": 3})
    block = grown.blocks[-1]
    assert (grown.head_drop.p, grown.pos_drop.p, grown.patch_drop.prob) == (0.1, 0.2, 0.25)
    assert (block.attn.proj_drop.p, block.attn.attn_drop.p, block.mlp.drop1.p) == (0.3, 0.4, 0.3)
    assert [round(float(getattr(b.drop_path1, "drop_prob", 0.0)), 3) for b in grown.blocks] == [0.0, 0.167, 0.333, 0.5]
    cait: Any = ligo_convert.grow(timm_model("cait_xxs24_224", drop_path_rate=0.5, depth_token_only=1), {"depth": 4})
    assert cait.blocks[-1].drop_path.drop_prob == 0.5


def test_settings_that_change_no_function_are_kept(tmp_path: Path) -> None:
    config = {**config_of("llama"), "attn_implementation": "eager"}
    model: Any = model_of(config, dtype=torch.float32)
    model.config.update({"return_dict": False, "id2label": {0: "a", 1: "b", 2: "c"}, "trained_by": {"who": "a team"}})
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "layers.1" in name and "mlp" in name
    grown: Any = ligo_convert.grow(model, TARGETS["llama"]["both"])
    assert grown.config._attn_implementation == "eager"
    assert grown.config.return_dict is False
    assert grown.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert grown.config.trained_by == {"who": "a team"}
    assert grown.config.trained_by is not model.config.trained_by
    # Layer 1 is new, and follows layer 0 of the source; layer 2 is the source's layer 1.
    assert {name for name, parameter in grown.named_parameters() if parameter.requires_grad} == {
        f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (2,) for part in ("gate", "up", "down")
    }
    grown.save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).hidden_size == 40


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_it_fits_in_whatever_mode_the_caller_is(mode: Callable[[], Any]) -> None:
    model = model_of(config_of("gpt2"), dtype=torch.float32)
    expected = ligo_convert.grow(model, {"n_layer": 3}, data=[IDS[:2]] * 4, steps=2).ligo
    with mode():
        grown = ligo_convert.grow(model, {"n_layer": 3}, data=[IDS[:2]] * 4, steps=2)
    assert grown.ligo.loss == expected.loss
    grown(input_ids=IDS, labels=IDS).loss.backward()


def test_a_tensor_dataset_is_data() -> None:
    from torch.utils.data import DataLoader, TensorDataset

    model = model_of(config_of("gpt2"), dtype=torch.float32)
    expected = ligo_convert.grow(model, {"n_layer": 3}, data=list(IDS.split(2)), steps=2).ligo.loss
    forms = [DataLoader(TensorDataset(IDS), batch_size=2), TensorDataset(IDS), [[ids] for ids in IDS.split(2)]]
    for data in forms:
        assert ligo_convert.grow(model, {"n_layer": 3}, data=data, batch_size=2, steps=2).ligo.loss == expected
    masked = model_of(config_of("bert"), dtype=torch.float32)
    pairs = DataLoader(TensorDataset(IDS, IDS), batch_size=2)
    assert ligo_convert.grow(masked, TARGETS["bert"]["depth"], data=pairs, steps=2).ligo.fit["steps"] == 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_on_the_second_device_is_grown_there() -> None:
    model = model_of(config_of("gpt2"), dtype=torch.float32).to("cuda:1")
    grown = ligo_convert.grow(model, {"n_layer": 3}, data=[IDS[:2]] * 4, steps=2)
    assert {str(parameter.device) for parameter in grown.parameters()} == {"cuda:1"}
