"""A written checkpoint loads in its library, whole or streamed: the same class, the same keys, the same refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from support.source_models import change_weights, write_case
from support.tiny import CASES, config_of, empty_model, family_of

from ligo_convert.errors import VerificationError
from ligo_convert.outputs import loading
from ligo_convert.outputs.loading import check_loads

Weights = dict[str, torch.Tensor]


@pytest.fixture(params=["in memory", "streamed"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How checkpoints are loaded: as memory allows."""
    if request.param == "streamed":
        monkeypatch.setattr(loading, "memory_limit", lambda: 1)
    return str(request.param)


@pytest.mark.parametrize("name", CASES)
def test_every_family_loads_whole_and_streamed(name: str, method: str, tmp_path: Path) -> None:
    written = write_case(tmp_path / "written", name, dtype=torch.bfloat16, own_layout=True)
    family = family_of(config_of(name))
    assert check_loads(written, family) == {
        "class": type(empty_model(config_of(name))).__name__,
        "missing_keys": [],
        "unexpected_keys": [],
        "mismatched_keys": [],
        "method": method,
    }


def without(weights: Weights) -> Weights:
    weights.pop(max(weights))
    return weights


def with_another(weights: Weights) -> Weights:
    return {**weights, "another.weight": torch.zeros(3)}


def of_another_shape(weights: Weights) -> Weights:
    return {**weights, max(weights): torch.zeros(7)}


@pytest.mark.parametrize("name", ["gpt2", "bert encoder", "vit"])
@pytest.mark.parametrize("change", [without, with_another, of_another_shape])
def test_what_the_library_would_not_load_is_refused(
    name: str, change: Callable[[Weights], Mapping[str, torch.Tensor]], method: str, tmp_path: Path
) -> None:
    written = write_case(tmp_path / "written", name, own_layout=True)
    change_weights(written, change)
    with pytest.raises(VerificationError, match=r"keys|cannot load"):
        check_loads(written, family_of(config_of(name)))


def test_placeholders_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library holds one element a tensor; an embedding that does not fit in memory is not copied."""
    import transformers

    written = write_case(tmp_path / "written", "llama", dtype=torch.bfloat16)
    monkeypatch.setattr(loading, "memory_limit", lambda: 1)
    models, load = [], transformers.LlamaForCausalLM.from_pretrained

    def keep(*args: object, **options: object) -> object:
        models.append(load(*args, **options))
        return models[-1]

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", keep)
    check_loads(written, family_of(config_of("llama")))
    model, _ = models[0]
    assert {parameter.untyped_storage().nbytes() for parameter in model.parameters()} == {4}
