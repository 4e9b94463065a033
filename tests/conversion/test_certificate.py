"""What a run says about preservation: the same in its JSON, on the terminal and on the card, and no more than was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.source_models import GROWN, change_config, change_weights, recipe_text, write_case, write_checkpoint
from support.tiny import TARGETS

from ligo_convert.cli.reports import run_report
from ligo_convert.conversion.apply import apply_operator
from ligo_convert.conversion.convert import convert
from ligo_convert.conversion.run_record import ConversionResult
from ligo_convert.errors import SourceError, VerificationError
from ligo_convert.growth.verdict import certified
from ligo_convert.in_memory import grow
from ligo_convert.outputs.metrics import APPLIED
from ligo_convert.recipes.recipe import load_recipe

Tensors = dict[str, torch.Tensor]


def grown(place: Path, target: dict[str, object], **sections: object) -> ConversionResult:
    (place / "recipe.yaml").write_text(recipe_text(place / "source", target, **sections))
    return convert(load_recipe(place / "recipe.yaml", out=str(place / "out")))


def told(outcome: ConversionResult, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str, str]:
    """What the JSON, the terminal and the card say about preservation, the last two in one line each."""
    capsys.readouterr()
    run_report(outcome)
    terminal = " ".join(capsys.readouterr().out.split())
    card = (outcome.out / "README.md").read_text().partition("## Function preservation")[2].partition("\n## ")[0]
    return outcome.json()["preservation"], terminal, " ".join(card.split())


def test_the_cost_of_the_stored_dtype_stands_beside_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "source", dtype=torch.bfloat16, tokenizer=False)
    kept, terminal, card = told(grown(tmp_path, GROWN["gpt2"]), capsys)
    cost = kept["rounding"]["max_logit_difference"]
    assert kept["verdict"] == "exact"
    assert cost > 100 * kept["max_logit_difference"], "the case: the map is exact, and the files are not"
    assert f"stored as bfloat16 a further difference: logits differ by at most {cost:.2e}" in terminal
    assert f"preservation exact: logits differ by at most {kept['max_logit_difference']:.2e}" in terminal
    assert "random tokens, float32" in terminal
    assert "Storing the weights as `bfloat16`" in card


@pytest.mark.parametrize(
    ("planned", "measured", "verdict"),
    [
        ("exact", "exact", "exact"),
        ("near", "exact", "near"),
        ("lossy", "exact", "near"),
        ("lossy", "near", "near"),
        ("near", "lossy", "lossy"),
        ("lossy", "lossy", "lossy"),
    ],
)
def test_exact_needs_the_mathematics_and_the_measurement(planned: Any, measured: Any, verdict: str) -> None:
    assert certified(planned, measured) == verdict


def test_a_small_difference_makes_no_method_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An uneven post-norm width: near by mathematics, whatever a few random tokens show."""
    write_case(tmp_path / "source", "bert", architecture="BertModel")
    # Behind norms without gain and shift the stream has no mean, which is all that the method changes.
    change_weights(tmp_path / "source", _plain_norms)
    outcome = grown(tmp_path, TARGETS["bert"]["both"], growth={"width": "zero", "depth": "identity"})
    kept, terminal, card = told(outcome, capsys)
    assert (kept["planned"], kept["measured"]) == ("near", "exact"), "the case"
    assert kept["verdict"] == "near"
    assert (kept["dtype"], kept["inputs"]) == ("float32", "random")
    assert "preservation near (measured; not exact by construction): hidden states differ" in terminal
    assert "**Near** (measured)" in card
    assert "not preserve the function of the source exactly" in card
    assert "up to rounding errors" not in card
    assert f"Measured on {kept['tokens']} random tokens in float32." in card


def _plain_norms(tensors: Tensors) -> Tensors:
    plain = {"LayerNorm.weight": torch.ones_like, "LayerNorm.bias": torch.zeros_like}
    return {name: plain.get(".".join(name.split(".")[-2:]), torch.clone)(tensor) for name, tensor in tensors.items()}


def _zeros(tensors: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def _constant(tensors: Tensors) -> Tensors:
    last = {"transformer.ln_f.weight": 0.0, "transformer.ln_f.bias": 1.0}
    return {**tensors, **{name: torch.full_like(tensors[name], value) for name, value in last.items()}}


def _infinite(tensors: Tensors) -> Tensors:
    return {**tensors, "transformer.ln_f.weight": tensors["transformer.ln_f.weight"] * float("nan")}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_zeros, "the source's logits are constant"),
        (_constant, "the source's logits are constant"),
        (_infinite, "the source's logits are not finite"),
    ],
)
def test_a_source_that_shows_nothing_gets_no_certificate(
    change: Callable[[Tensors], Tensors], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_weights(write_checkpoint(tmp_path / "source", tokenizer=False), change)
    outcome = grown(tmp_path, GROWN["gpt2"], source={"allow_nonfinite": True})
    kept, terminal, card = told(outcome, capsys)
    assert kept["verdict"] is kept["measured"] is kept["max_logit_difference"] is kept["loss_difference"] is None
    assert kept["unmeasured"].startswith(why)
    assert f"preservation exact by construction; not measured: {why}" in terminal
    assert f"It was not measured: {why}" in card
    assert "every logit equals" in card, "what the mathematics say is still said"
    assert "random" not in card


def test_a_model_in_memory_is_told_alike() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_head=2, n_layer=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report: Any = grow(model, {"n_embd": 24, "n_head": 3}, progress=False).ligo
    assert report.preservation["verdict"] is None
    assert report.preservation["unmeasured"].startswith("the source's logits are constant")
    assert report.preservation["planned"] == "exact"


def test_copies_say_why_nothing_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "source", tokenizer=False)
    outcome = grown(tmp_path, {"n_layer": 4}, growth={"width": "copy", "depth": "stack"})
    kept, terminal, card = told(outcome, capsys)
    assert kept["unmeasured"] == "every tensor is a copy of one of the source's, so no model was run"
    assert f"preservation lossy by construction; not measured: {kept['unmeasured']}" in terminal
    assert f"It was not measured: {kept['unmeasured']}." in card
    # `apply` measures nothing either, and refuses the sources that `run` refuses.
    operator = outcome.out / "ligo" / "operator.safetensors"
    kept, terminal, card = told(apply_operator(operator, str(tmp_path / "source"), tmp_path / "applied"), capsys)
    assert (kept["verdict"], kept["unmeasured"]) == (None, APPLIED)
    assert f"preservation not measured: {APPLIED}" in terminal
    assert "Function preservation was not measured: " in card
    change_config(tmp_path / "source", lambda config: {**config, "quantization_config": {"bits": 4}})
    with pytest.raises(SourceError, match="quantization_config"):
        apply_operator(operator, str(tmp_path / "source"), tmp_path / "again")


def test_growth_that_is_exact_on_paper_only_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong table or map: the plan says exact, and the models differ."""
    from ligo_convert.growth import width_methods

    write_checkpoint(tmp_path / "source", tokenizer=False)
    monkeypatch.setattr(width_methods, "_uneven_split", lambda index, old, rng: 1.01 * _even(index))
    with pytest.raises(
        VerificationError, match=r"(?s)exact|mathematics.*expected: at most.*measured in float"
    ) as caught:
        grown(tmp_path, GROWN["gpt2"])
    assert caught.value.exit_code == 7
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name and not path.name.startswith(".")] == []


def _even(index: Any) -> Any:
    import numpy as np

    return 1 / np.bincount(index)[index]


def _large_mean(tensors: Tensors) -> Tensors:
    """Positions with a mean that every norm takes away, and float32 hardly."""
    return {**tensors, "transformer.wpe.weight": tensors["transformer.wpe.weight"] + 3e5}


@pytest.mark.parametrize("where", ["on disk", "in memory"])
def test_rounding_in_float32_condemns_no_exact_growth(where: str, tmp_path: Path) -> None:
    source = change_weights(write_checkpoint(tmp_path / "source", tokenizer=False, tied=False), _large_mean)
    if where == "on disk":
        kept = grown(tmp_path, GROWN["gpt2"]).json()["preservation"]
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(source)
        kept = grow(model, GROWN["gpt2"], progress=False).ligo.preservation
    assert (kept["planned"], kept["verdict"], kept["dtype"]) == ("exact", "exact", "float64")


def test_a_narrow_model_in_memory_is_told_what_its_dtype_costs(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", tokenizer=False, dtype=torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    kept = grow(model, GROWN["gpt2"], progress=False).ligo.preservation
    assert kept["rounding"]["dtype"] == "bfloat16"
    assert kept["rounding"]["max_logit_difference"] > 100 * kept["max_logit_difference"]
