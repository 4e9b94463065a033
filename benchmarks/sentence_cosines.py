"""Measure how much the sentence similarities of grown encoders differ from those of their source.

    python benchmarks/sentence_cosines.py ENCODER OUT [OUT ...] --text book.txt

Input: the source's directory (with its tokenizer), directories of models grown from it, and a text.
Output: for each grown model, the mean and the largest absolute difference from the source in the cosine of two mean-pooled embeddings,
over all pairs of lines.

All models are measured on the same lines in one run.
"""

from __future__ import annotations

import math
from pathlib import Path

import click
import torch
import transformers

BATCH = 20


def embeddings(directory: Path, lines: list[str], dtype: torch.dtype) -> torch.Tensor:
    """Return the mean-pooled embeddings of the lines, normalised to length one: [lines, width] float32."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    model = transformers.AutoModel.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype
    ).eval()
    pooled = []
    with torch.no_grad():
        for first in range(0, len(lines), BATCH):
            batch = tokenizer(lines[first : first + BATCH], padding=True, truncation=True, return_tensors="pt")
            states, mask = model(**batch).last_hidden_state.float(), batch["attention_mask"].unsqueeze(-1)
            pooled.append((states * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(pooled), dim=-1)


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("grown", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--text", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@click.option("--lines", "count", default=100, show_default=True, help="How many lines, spread over the text.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
def main(source: Path, grown: tuple[Path, ...], text: Path, count: int, dtype: str) -> None:
    """Compare GROWN encoders with SOURCE."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    candidates = [line.strip() for line in text.read_text(encoding="utf-8", errors="replace").splitlines()]
    candidates = [line for line in candidates if 40 < len(line) < 200]
    lines = candidates[:: math.ceil(len(candidates) / count)]
    kind = getattr(torch, dtype)
    before = embeddings(source, lines, kind)
    click.echo(f"{len(lines)} lines, {dtype}")
    for directory in grown:
        after = embeddings(directory, lines, kind)
        apart = (before @ before.T - after @ after.T).abs()
        click.echo(f"{directory.name:24} mean {float(apart.mean()):.2e}, largest {float(apart.max()):.2e}")


if __name__ == "__main__":
    main()
