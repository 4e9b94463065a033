"""`ligo_convert.grow`: a model in, a larger one of the same class out."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.tiny import TARGETS, config_of, logits, model_of

import ligo_convert
from ligo_convert.errors import RecipeError, SourceError


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "phi3", "bert", "roberta"])
def test_a_grown_model_computes_what_its_source_does(family: str, tied: bool) -> None:
    model = model_of(config_of(family, tied=tied), dtype=torch.float32)
    grown = ligo_convert.grow(model, TARGETS[family]["both"])
    assert type(grown) is type(model)
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(logits(grown), logits(model), rtol=0, atol=1e-4 * float(logits(model).abs().max()))
    assert (grown.get_output_embeddings().weight is grown.get_input_embeddings().weight) == tied


def test_data_makes_it_learn() -> None:
    torch.manual_seed(0)
    model = model_of(config_of("gpt2"), dtype=torch.float32)
    pattern = torch.arange(12).repeat(4, 1)
    batches = [pattern for _ in range(6)]

    def loss(found: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(found(input_ids=pattern, labels=pattern).loss)

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    target = {"n_embd": 24, "n_head": 3, "n_layer": 3}
    start = ligo_convert.grow(model, target)
    learned = ligo_convert.grow(model, target, data=batches, steps=10, learning_rate={"width": 1e-2})
    assert loss(learned) < loss(start) - 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "the source stays"


def test_what_cannot_be_learned_from_is_refused() -> None:
    model = model_of(config_of("gpt2"), dtype=torch.float32)
    with pytest.raises(RecipeError, match="two batches"):
        ligo_convert.grow(model, {"n_layer": 3}, data=[torch.zeros(1, 4, dtype=torch.long)])
    with pytest.raises(RecipeError, match="token ids"):
        ligo_convert.grow(model, {"n_layer": 3}, data=[torch.zeros(1, 4)] * 2)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, ligo_convert; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_without_its_head_is_refused() -> None:
    from transformers import GPT2Model

    bare = GPT2Model(model_of(config_of("gpt2")).config)
    with pytest.raises(SourceError, match="GPT2Model is not supported"):
        ligo_convert.grow(bare, {"n_layer": 3})


def test_a_model_that_carries_no_config_is_refused() -> None:
    with pytest.raises(SourceError, match="has no config that says what it is"):
        ligo_convert.grow(model_of(config_of("vit"), dtype=torch.float32), {"depth": 3})


def test_batches_that_a_masked_language_model_cannot_learn_from_are_refused() -> None:
    model, ids = model_of(config_of("bert"), dtype=torch.float32), torch.randint(3, 29, (2, 8))
    cases = {
        "learns from `labels`": [ids, ids],
        "several lengths": [{"input_ids": ids, "labels": ids}, {"input_ids": ids[:, :6], "labels": ids[:, :6]}],
        "padded": [{"input_ids": ids, "labels": ids, "attention_mask": torch.arange(8).expand(2, 8) < 6}] * 2,
    }
    for message, data in cases.items():
        with pytest.raises(RecipeError, match=message):
            ligo_convert.grow(model, TARGETS["bert"]["depth"], data=data)
