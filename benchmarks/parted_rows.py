"""Train a grown Llama whose new layers start silent: with parted rows, with twins, and with twins under the same drawn signs.

    python benchmarks/parted_rows.py                # two seeds, 700 steps each
    python benchmarks/parted_rows.py --seeds 0,1,2 --steps 1400

Input: the source texts of Python's standard library, as bytes. Output: for each seed the held-out loss, in nats per byte, of the source, of
each start before training (all equal: the function is the same), and of each start after training. All arms of a seed see the same batches.

A source of 2 layers and width 48 grows by `lemon` and `identity` to 4 layers and width 96. The arms differ in the rows of copied entries
in the silent layers: `parted` has the signs that growth draws; `twins` has plain copies; `control` has plain copies under drawn signs that
both copies share, so that it differs from `twins` as much as `parted` does, and has twins all the same.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.checkpoints.torch_io import tensor_from_bytes, tensor_to_bytes
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.registry import FAMILIES
from ligo_convert.growth.growth_plan import GrowthSettings, plan_growth
from ligo_convert.growth.initialize import initial_operator
from ligo_convert.growth.stream import grow, target_specs

SEQUENCE, BATCH = 64, 16
SMALL: dict[str, Any] = {
    **{"vocab_size": 256, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True},
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
}
CHANGES: dict[str, object] = {
    **{"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4},
    **{"num_attention_heads": 8, "num_key_value_heads": 4},
}
# Rows of these tensors are inner: a silent layer's function does not depend on them. Their first half copies the source.
INNER = ("mlp.gate_proj", "mlp.up_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
SILENT = (1, 3)


@click.command()
@click.option("--seeds", default="0,1", show_default=True, help="Seeds, separated by commas.")
@click.option("--steps", default=700, show_default=True, help="Steps of training after growth.")
@click.option("--source-steps", default=1500, show_default=True, help="Steps of training of the source.")
def main(seeds: str, steps: int, source_steps: int) -> None:
    """Print the losses of each seed and arm, and the difference to `parted`."""
    torch.set_num_threads(1)
    train, held_out = texts()
    for seed in map(int, seeds.split(",")):
        torch.manual_seed(seed)
        source = LlamaForCausalLM(LlamaConfig(**SMALL))
        fit(source, train, steps=source_steps, rate=3e-3, seed=seed)
        click.echo(f"seed {seed}: source {loss_of(source, held_out):.4f}")
        found = {}
        for arm in ("parted", "twins", "control"):
            model = grown(source, arm, seed=seed)
            start = loss_of(model, held_out)
            fit(model, train, steps=steps, rate=1e-3, seed=7 + seed)
            found[arm] = loss_of(model, held_out)
            click.echo(f"  {arm:8} start {start:.4f}, after {steps} steps {found[arm]:.4f}")
        click.echo(
            f"  parted gains {found['twins'] - found['parted']:+.4f} on twins, "
            f"{found['control'] - found['parted']:+.4f} on the control"
        )


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Return training and held-out bytes as token ids."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:150]
    data = np.frombuffer(b"".join(file.read_bytes() for file in files), dtype=np.uint8)
    ids = torch.tensor(data.astype(np.int64))
    cut = int(len(ids) * 0.95)
    return ids[:cut], ids[cut:]


def batch_of(ids: torch.Tensor, rng: np.random.Generator, count: int) -> torch.Tensor:
    """Draw sequences: [count, SEQUENCE] token ids."""
    return torch.stack([ids[at : at + SEQUENCE] for at in rng.integers(0, len(ids) - SEQUENCE, count)])


def fit(model: LlamaForCausalLM, ids: torch.Tensor, *, steps: int, rate: float, seed: int) -> None:
    """Train with AdamW: 30 steps of warmup, and a linear decay over the last third."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    rng = np.random.default_rng(seed)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 30, (steps - step) / (0.3 * steps))
        batch = batch_of(ids, rng, BATCH)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Return the mean loss over 384 held-out sequences, the same at every call."""
    model.eval()
    rng = np.random.default_rng(99)
    batches = [batch_of(ids, rng, 32) for _ in range(12)]
    return float(np.mean([model(input_ids=batch, labels=batch).loss.item() for batch in batches]))


def grown(source: LlamaForCausalLM, arm: str, *, seed: int) -> LlamaForCausalLM:
    """Grow the source, and set the rows of copied entries in silent layers as the arm says."""
    family = FAMILIES["llama"]
    config = {**source.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    target = family.resize(config, CHANGES, where="target")
    settings = GrowthSettings(width="lemon", depth="identity", keying="source", tie=None, seed=seed)
    plan = plan_growth(family, settings, config, target, asked=CHANGES, where="growth")
    weights = dict(source.named_parameters())
    named = {name: TensorSpec(name=name, dtype="F32", shape=tuple(weight.shape)) for name, weight in weights.items()}
    inventory = claim_tensors(family, config, named, label="source")
    operator = initial_operator(plan)
    if arm != "parted":
        operator = replace(operator, parted={})
    specs = target_specs(plan.family, inventory, plan.target, dtype=None)

    def read(name: str) -> bytearray:
        return bytearray(tensor_to_bytes(weights[name], named[name]))

    stored = {spec.name: spec for spec in specs}
    tensors = {
        name: tensor_from_bytes(bytearray(data), stored[name]).clone()
        for name, data in grow(read, plan.family, inventory, operator, specs)
    }
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, **CHANGES, "rms_norm_eps": plan.target["rms_norm_eps"]}))
    missing, unexpected = model.load_state_dict(_signed(tensors, seed) if arm == "control" else tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}, "the head is tied"
    return model


def _signed(tensors: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Change signs in the silent layers, alike in an entry and its copy."""
    rng = np.random.default_rng(1000 + seed)
    changed = dict(tensors)
    for layer in SILENT:
        for name in (f"model.layers.{layer}.{part}.weight" for part in INNER):
            rows, columns = tensors[name].shape
            signs = torch.tensor(rng.choice([-1.0, 1.0], (rows // 2, columns)), dtype=torch.float32)
            changed[name] = tensors[name] * signs.repeat(2, 1)
    return changed


if __name__ == "__main__":
    main()
