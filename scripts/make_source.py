"""Make a full-size source checkpoint without a download: real shapes, with random weights as the library initialises them.

    python scripts/make_source.py gpt2 out/gpt2-base --tokenizer path/to/gpt2-tokenizer
    python scripts/make_source.py llama out/llama-1b --set hidden_size=2048 --set num_hidden_layers=22 --dtype bfloat16
    python scripts/make_source.py bert out/bert-encoder --head BertModel
    python scripts/make_source.py cait out/cait-xs24 --architecture cait_xs24_384

Input: a family name, and config keys that replace the library's defaults.
Output: a directory in the format of transformers or timm (config.json, safetensors, the tokenizer's files).

The model is untrained. Use it to test memory, speed and loading, not losses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import torch

from ligo_convert.checkpoints.files import TOKENIZER_FILES
from ligo_convert.checkpoints.tensors import DTYPE_NAMES
from ligo_convert.checkpoints.torch_io import tensor_to_bytes
from ligo_convert.checkpoints.writer import Writer, plan_shards
from ligo_convert.families.configs import flat_config
from ligo_convert.families.registry import FAMILIES
from ligo_convert.growth.apply import drawn_values
from ligo_convert.io.staging import Staging
from ligo_convert.io.strict_yaml import parse_value
from ligo_convert.outputs.side_files import json_bytes, target_config


@click.command()
@click.argument("family", type=click.Choice(sorted(FAMILIES)))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A config key over the library's default.")
@click.option("--head", help="The library's class, where it is not the usual one.")
@click.option("--architecture", help="A name of timm's: the config it stands for.")
@click.option("--dtype", type=click.Choice(sorted(DTYPE_NAMES)), default="float32", show_default=True)
@click.option("--max-shard-size", type=int, default=5 * 10**9, show_default=True, metavar="BYTES")
@click.option("--tokenizer", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Copy its files, too.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    family: str,
    out: Path,
    settings: tuple[str, ...],
    head: str | None,
    architecture: str | None,
    dtype: str,
    max_shard_size: int,
    tokenizer: Path | None,
    seed: int,
) -> None:
    """Write a checkpoint of FAMILY to the new directory OUT."""
    found = FAMILIES[family].for_architecture(head)
    changes = {
        key: parse_value(value, label=f"--set {key}").data for key, _, value in (s.partition("=") for s in settings)
    }
    named = flat_config({"architecture": architecture}) if architecture else found.defaults
    config = {**named, "model_type": found.model_type, **changes}
    rows = found.rows_for(config)
    planned = list(found.tensors_of(rows, config, dtype=DTYPE_NAMES[dtype]))
    specs = tuple(replace(spec, name=found.written(spec.name)) for _, _, spec in planned)
    with Staging.open(out, key=f"make_source {family} {head} {architecture} {settings} {dtype} {seed}") as staging:
        with Writer(staging, plan_shards(specs, max_shard_size)) as writer:
            wanted = {spec.name for spec in writer.pending()}
            for (row, layer, _), spec in zip(planned, specs, strict=True):
                if spec.name in wanted:
                    values = drawn_values(found, config, row, layer, spec.shape, seed)
                    writer.put(spec.name, tensor_to_bytes(torch.from_numpy(values), spec))
        staging.write_bytes("config.json", json_bytes(target_config(found, config, specs, stored={})))
        for name in TOKENIZER_FILES if tokenizer else ():
            assert tokenizer is not None
            if (tokenizer / name).is_file():
                staging.write_bytes(name, (tokenizer / name).read_bytes())
        staging.commit()
    click.echo(f"{out}: {sum(spec.elements for spec in specs):,} parameters in {len(specs)} tensors")


if __name__ == "__main__":
    main()
