"""Let a Trainer go on from a checkpoint that was grown with its optimizer, under every policy, beside one that was not grown.

    python benchmarks/optimizer_state.py                                       # 48 wide, 2 layers -> 64 wide, 4 layers, rate 2e-3
    python benchmarks/optimizer_state.py --target '{"n_embd": 96, "n_head": 6}' --rate 1e-3 --before 400

Input: the source texts of Python's standard library, as bytes. Output: for each policy of `growth.state` the held-out loss at the step of
growth, and by how many nats it is above the control: at most within 200 steps, and at the end (docs/development/log.md).
`accelerate` must be installed.
"""

from __future__ import annotations

import json
import random
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
import transformers

from ligo_convert.conversion.convert import convert
from ligo_convert.growth.state_maps import POLICIES
from ligo_convert.recipes.recipe import load_recipe

LENGTH, HELD, AFTER = 64, 64, 200
SMALL: dict[str, Any] = {
    **{"vocab_size": 256, "n_positions": LENGTH, "n_embd": 48, "n_head": 3, "n_layer": 2},
    **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0},
}


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Windows of the text at drawn places; the last bytes are held out."""

    def __init__(self) -> None:
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:90]
        self.tokens = torch.tensor(list(b"".join(file.read_bytes() for file in files)[:2_000_000]))
        self.held = self.tokens[-HELD * LENGTH :].view(HELD, LENGTH)

    def __len__(self) -> int:
        return 20_000

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        begin = random.Random(number).randrange(len(self.tokens) - (HELD + 1) * LENGTH)
        return dict.fromkeys(("input_ids", "labels"), self.tokens[begin : begin + LENGTH])


class Curve(transformers.TrainerCallback):
    """The held-out loss at the first step and at every tenth, and at each of the first ten after growth."""

    def __init__(self, tokens: torch.Tensor, before: int) -> None:
        self.tokens, self.before, self.losses = tokens, before, dict[int, float]()

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._measure(others["model"], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step % 10 == 0 or self.before < state.global_step < self.before + 10:
            self._measure(others["model"], state.global_step)

    def _measure(self, model: Any, step: int) -> None:
        model.eval()
        with torch.no_grad():
            self.losses[step] = float(model(input_ids=self.tokens, labels=self.tokens).loss)
        model.train()


def train(
    model: Any, data: Windows, place: Path, *, before: int, rate: float, schedule: str, resume: Path | None = None
) -> dict[int, float]:
    """Train to `AFTER` steps beyond the growth. Return the held-out losses by step."""
    curve = Curve(data.held, before)
    arguments = transformers.TrainingArguments(
        output_dir=str(place),
        max_steps=before + AFTER,
        per_device_train_batch_size=16,
        learning_rate=rate,
        lr_scheduler_type=schedule,
        warmup_steps=20,
        weight_decay=0.01,
        save_strategy="no" if resume else "steps",
        save_steps=before,
        report_to=[],
        use_cpu=True,
        seed=1,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[curve])
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return curve.losses


@click.command()
@click.option(
    "--target", default='{"n_embd": 64, "n_head": 4, "n_layer": 4}', help="Config keys of the target, as JSON."
)
@click.option("--width", default="lemon", show_default=True, help="Width method.")
@click.option("--before", default=300, show_default=True, help="Steps before growth.")
@click.option("--rate", default=2e-3, show_default=True, help="Peak learning rate.")
@click.option("--schedule", default="constant", show_default=True, help="A schedule of transformers' Trainer.")
def main(target: str, width: str, before: int, rate: float, schedule: str) -> None:
    """Print one line for every policy."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = Windows()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings: dict[str, Any] = {"before": before, "rate": rate, "schedule": schedule}
        small = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL))
        control = train(small, data, place / "training", **settings)
        click.echo(f"source at step {before}: {control[before]:.4f}; control at the end: {control[before + AFTER]:.4f}")
        for policy in POLICIES:
            recipe = {
                "version": 1,
                "source": {"model": str(place / "training" / f"checkpoint-{before}")},
                "target": {"config": json.loads(target)},
                "growth": {"width": width, "depth": "identity", "state": policy},
                "output": {"dir": str(place / policy)},
            }
            (place / "recipe.yaml").write_text(json.dumps(recipe))
            out = convert(load_recipe(place / "recipe.yaml"), device="cpu").out
            large = transformers.GPT2LMHeadModel(transformers.AutoConfig.from_pretrained(out, trust_remote_code=False))
            losses = train(large, data, place / "resumed", resume=out, **settings)
            apart = {step: loss - control[step] for step, loss in losses.items()}
            click.echo(
                f"{policy}: step 0 {losses[before]:.4f}; above the control at most {max(apart.values()):+.3f},"
                f" at the end {apart[before + AFTER]:+.3f}"
            )


if __name__ == "__main__":
    main()
