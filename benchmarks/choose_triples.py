"""Measure how far the choice of `choose` is from the best: choose, then train every candidate to the whole budget.

    python benchmarks/choose_triples.py --list
    python benchmarks/choose_triples.py --only gpt2-drawn --out out/triples
    python benchmarks/choose_triples.py --held --out out/triples --minutes 120

Input: source/target/budget triples, as data in this file. Text is the source code of Python's standard library; `--images` adds a triple on
a folder of images.
Output: a folder for each triple, one line for each, and how many choices are within two points of the best.

Points are per cent of what scratch costs at the loss that was reached, so two points are about 0.01 nats here. Every candidate takes the
best of two or three learning rates at full length; the choice is also read at the rate that was advised. The best few and the choice are
trained with more seeds. The same command goes on where it was stopped, and repeats nothing that is finished.

Choices were improved on the triples that are not held apart. Figures that count come from the held-apart ones.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import click

from ligo_convert import api
from ligo_convert.comparison.choose import choose
from ligo_convert.comparison.experiment import Choice, Experiment
from ligo_convert.comparison.methods import SCRATCH
from ligo_convert.comparison.scheduler import WantedRun
from ligo_convert.comparison.study import Study, carry_out
from ligo_convert.comparison.trials import Trials, TrialScheduler, make_trials
from ligo_convert.conversion.plan import Plan
from ligo_convert.outputs.layout import TRAINED_SOURCE
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import Recipe

WITHIN: Final = 2.0  # points from the best that count as right

RATES: Final = (5e-3, 1e-2, 2e-2, 4e-2)  # learning rates of scratch in a full training, with Muon

# The same for all others, as multiples of the best of scratch's: two, and the third where the second is better than the first.
FACTORS: Final = (1.0, 0.4, 0.15)

CURVE: Final = (0.35, 0.5, 0.7, 1.4, 2.0)  # more budgets of scratch: its cost at the losses of others

CONTENDERS: Final = 4  # candidates that are trained with all seeds, beside the choice

RECORD: Final = "full.json"

FORMAT: Final = "ligo-full-training/1"

Config = Mapping[str, Any]

GPT2: Final = {
    "model_type": "gpt2",
    "vocab_size": 384,
    "n_positions": 64,
    "activation_function": "gelu_pytorch_tanh",
}
LLAMA: Final = {
    "model_type": "llama",
    "vocab_size": 384,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
BERT: Final = {
    "model_type": "bert",
    "vocab_size": 384,
    "max_position_embeddings": 64,
    "type_vocab_size": 1,
    "initializer_range": 0.05,
}
VIT: Final = {"model_type": "vit", "img_size": 32, "patch_size": 4}


def gpt2(width: int, layers: int) -> dict[str, Any]:
    return {"n_embd": width, "n_head": width // 12, "n_layer": layers}


def llama(width: int, layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": width * 8 // 3, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": width // 12, "num_key_value_heads": width // 12}


def encoder(width: int, layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": width * 4, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": width // 12}


def vit(width: int, layers: int) -> dict[str, Any]:
    return {"embed_dim": width, "num_heads": width // 12, "depth": layers}


@dataclass(frozen=True, kw_only=True)
class Triple:
    """A source, a target and a budget.

    Attributes:
        name: name of its folder.
        held: whether it is held apart, so that nothing was improved on it.
        model: the config keys that source and target share.
        source: sizes of the source.
        target: sizes of the target.
        budget: tokens for each parameter of the target.
        trained: tokens for each parameter of the source that it is trained on; None where no source is at hand.
        batch: sequences or images in a step.
        fit: keys of the recipe's `fit` that differ.
        images: whether it reads images.
    """

    name: str
    held: bool = False
    model: Config
    source: Config
    target: Config
    budget: float
    trained: float | None = None
    batch: int = 8
    fit: Config = field(default_factory=dict)
    images: bool = False


TRIPLES: Final = (
    Triple(name="gpt2-drawn", model=GPT2, source=gpt2(24, 2), target=gpt2(24, 6), budget=6),
    Triple(name="llama-long", model=LLAMA, source=llama(24, 1), target=llama(36, 3), budget=6, trained=80),
    Triple(name="gpt2-deeper", model=GPT2, source=gpt2(24, 2), target=gpt2(24, 6), budget=6, trained=20),
    Triple(name="gpt2-long", held=True, model=GPT2, source=gpt2(24, 2), target=gpt2(36, 3), budget=12, trained=100),
    Triple(name="gpt2-short", held=True, model=GPT2, source=gpt2(36, 1), target=gpt2(36, 4), budget=8, trained=10),
    Triple(name="llama-drawn", held=True, model=LLAMA, source=llama(24, 2), target=llama(36, 3), budget=15),
    Triple(
        name="llama-deeper", held=True, model=LLAMA, source=llama(24, 2), target=llama(24, 6), budget=20, trained=60
    ),
    Triple(
        name="bert-long",
        held=True,
        model=BERT,
        source=encoder(24, 2),
        target=encoder(36, 3),
        budget=20,
        trained=100,
        fit={"mask_probability": 0.3},
    ),
    Triple(
        name="vit-short", held=True, model=VIT, source=vit(24, 2), target=vit(36, 4), budget=15, trained=20, images=True
    ),
)


@dataclass(frozen=True, kw_only=True)
class FullTraining(Trials):
    """An experiment that trains candidates to the whole budget.

    Attributes:
        asked: candidate -> settings that it is trained with, or learning rates as multiples of the best that scratch has.
        curve: whether scratch is trained to other budgets, too.
        contenders: number of candidates that are trained with all seeds; 0 for all.
    """

    asked: Mapping[str, tuple[Choice, ...] | tuple[float, ...]]
    curve: bool = False
    contenders: int = 0


class FullScheduler(TrialScheduler):
    """Trains every candidate with all of its settings, then the best ones with more seeds, and scratch to more budgets."""

    experiment: FullTraining

    def wanted(self) -> list[WantedRun]:
        experiment, first = self.experiment, self.experiment.seeds[0]
        found = [self.full_run(name, choice, first) for name in experiment.asked for choice in self.settings_of(name)]
        best = self.best_settings()
        if len(best) < len(experiment.asked):
            return found
        if experiment.curve:
            found += [self.scratch_run(best[SCRATCH], share) for share in CURVE]
        return found + [
            self.full_run(name, choice, seed)
            for seed in experiment.seeds[1:]
            for name in self.contenders()
            for choice in ([best[name]] if experiment.contenders else self.settings_of(name))
        ]

    def settings_of(self, name: str) -> list[Choice]:
        """Return the settings to try of a candidate; none until the learning rate is known that theirs are multiples of."""
        found: list[Choice] = []
        for one in self.experiment.asked[name]:
            if isinstance(one, Choice):
                found.append(one)
            elif (base := self.best_of(SCRATCH)) and (len(found) < 2 or self._improves(name, found)):
                found.append(replace(base, learning_rate=base.learning_rate * one))
        return found

    def _improves(self, name: str, settings: Sequence[Choice]) -> bool:
        """Whether the last of some settings is known to be better than the one before it."""
        before, last = (self.end_of(self.full_run(name, one, self.experiment.seeds[0]).run) for one in settings[-2:])
        if before is None or last is None:
            return False
        return _finite(last, "validation_loss") < _finite(before, "validation_loss")

    def full_run(self, name: str, choice: Choice, seed: int) -> WantedRun:
        entry = self.experiment.entries[name]
        start = self._start(entry, seed)
        assert start is not None, "no candidate starts from a source that is trained for it"
        return self._want(entry, seed, choice, self.experiment.steps_of_round(entry, 0), start=start)

    def scratch_run(self, choice: Choice, share: float) -> WantedRun:
        steps = round(share * self.experiment.steps)
        return self._want(self.experiment.baseline, self.experiment.seeds[0], choice, steps)

    def best_of(self, name: str) -> Choice | None:
        """Return the best settings of a candidate, by the first seed's validation loss; None until its runs are done."""
        settings = self.settings_of(name)
        ends = [self.end_of(self.full_run(name, one, self.experiment.seeds[0]).run) for one in settings]
        if not ends or any(end is None for end in ends):
            return None
        return min(zip(ends, settings, strict=True), key=lambda pair: _finite(pair[0], "validation_loss"))[1]

    def best_settings(self) -> dict[str, Choice]:
        return {name: best for name in self.experiment.asked if (best := self.best_of(name)) is not None}

    def contenders(self) -> list[str]:
        """Return the candidates that are ahead with the first seed, scratch among them."""
        best, first = self.best_settings(), self.experiment.seeds[:1]
        ranked = sorted(best, key=lambda name: self.loss_of(name, best[name], first))
        return ranked[: self.experiment.contenders or None]

    def loss_of(self, name: str, choice: Choice, seeds: Sequence[int]) -> float:
        ends = [self.end_of(self.full_run(name, choice, seed).run) for seed in seeds]
        return statistics.fmean(_finite(end, "loss") for end in ends)

    def _is_open(self) -> bool:
        return len(self.best_settings()) < len(self.experiment.asked)


def _finite(end: Mapping[str, Any] | None, key: str) -> float:
    assert end is not None, "the run is done"
    return math.inf if end[key] is None else float(end[key])


def full_training(plan: Plan, *, steps: int, seeds: Sequence[int], **more: Any) -> FullTraining:
    """Return the candidates that `choose` would try, at the whole budget."""
    made = make_trials(plan, candidates=None, steps=steps, seeds=seeds)
    kept = {
        one.name: getattr(made, one.name) for one in fields(made) if one.name not in ("settings", "rounds", "_known")
    }
    settings = made.settings.model_copy(update={"tuning_fraction": 1.0})
    return FullTraining(**kept, settings=settings, rounds=(1.0,), **more)


def whole_list(plan: Plan, *, steps: int, seeds: Sequence[int], decays: Sequence[float]) -> FullTraining:
    """Return the training of all candidates with several settings, which does not depend on what was chosen."""
    names = make_trials(plan, candidates=None, steps=steps, seeds=seeds).entries
    scratch = tuple(Choice(optimizer="muon", learning_rate=rate, decay=decay) for rate in RATES for decay in decays)
    asked = {name: scratch if name == SCRATCH else FACTORS for name in names}
    return full_training(plan, steps=steps, seeds=seeds, asked=asked, curve=True, contenders=CONTENDERS)


def picked_alone(
    plan: Plan, *, steps: int, seeds: Sequence[int], choice: Mapping[str, Any], best: Mapping[str, Any]
) -> FullTraining:
    """Return the training of the choice with all seeds: as it was advised, and with the settings that are best for it in full."""
    advised, own = (
        Choice(optimizer=one["optimizer"], learning_rate=one["learning_rate"], decay=one["decay"])
        for one in (choice, best)
    )
    return full_training(plan, steps=steps, seeds=seeds, asked={choice["name"]: (advised, own)})


def conclude(scheduler: FullScheduler, **more: Any) -> dict[str, Any]:
    """Return the record of a full training: the losses of all candidates."""
    experiment, best, contenders = scheduler.experiment, scheduler.best_settings(), scheduler.contenders()
    seeds, first = experiment.seeds, experiment.seeds[:1]
    rows = [
        {
            "name": name,
            "loss": scheduler.loss_of(name, choice, seeds if name in contenders else first),
            "seeds": len(seeds) if name in contenders else 1,
            **asdict(choice),
            "tried": [
                {**asdict(one), "loss": scheduler.loss_of(name, one, first if experiment.contenders else seeds)}
                for one in scheduler.settings_of(name)
            ],
        }
        for name, choice in best.items()
    ]
    curve = []
    if experiment.curve:
        curve = [
            (one, _finite(scheduler.end_of(scheduler.scratch_run(best[SCRATCH], one).run), "loss")) for one in CURVE
        ]
        curve.append((1.0, scheduler.loss_of(SCRATCH, best[SCRATCH], first)))
    return {
        "format": FORMAT,
        "key": more["key"],
        "scratch_flops": experiment.scratch_flops,
        "scratch": sorted(curve),
        "candidates": sorted(rows, key=lambda row: row["loss"]),
    }


def cost_at(scratch: Sequence[tuple[float, float]], loss: float) -> float:
    """Return what scratch costs at a loss, in budgets: on the lines through its ends in (log cost, loss), and on beyond the last two."""
    for (low, above), (high, below) in pairwise(scratch):
        if (loss >= below or high == scratch[-1][0]) and above > below:
            return float(low * (high / low) ** ((above - loss) / (above - below)))
    return math.nan


def points_between(scratch: Sequence[tuple[float, float]], worse: float, better: float) -> float:
    """Return how many points of scratch's cost lie between the savings at two losses, each reached with one budget."""
    return 100 * (1 / cost_at(scratch, worse) - 1 / cost_at(scratch, better))


class Told(Progress):
    """Prints messages, not bars."""

    def say(self, text: str) -> None:
        click.echo(f"    {text}", err=True)

    warn = say


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How the triples are run."""

    out: Path
    images: Path | None
    jobs: int
    seeds: tuple[int, ...]
    decays: tuple[float, ...]

    def recipe(self, triple: Triple, *, made: Path | None, steps: int = 1) -> Path:
        """Write the recipe of a triple, and return its file.

        Args:
            made: the trained source; None where there is none, or to train it.
            steps: steps of the source's training.
        """
        folder = self.out / triple.name
        folder.mkdir(parents=True, exist_ok=True)
        data: dict[str, Any] = {"stdlib": True}
        classes = {}
        if triple.images:
            assert self.images is not None
            data = {"images": str(self.images.resolve()), "augment": ["flip", "crop"]}
            classes = {"num_classes": sum(path.is_dir() for path in self.images.iterdir())}
        pretrain = {
            "config": {**triple.model, **classes, **triple.source},
            "steps": steps,
            "batch_size": 4 * triple.batch,
            "sequence_length": SEQUENCE,
            "learning_rate": 4e-3,
        }
        recipe = {
            "version": 1,
            "source": {"pretrain": pretrain} if made is None else {"model": str(made.resolve())},
            "target": {"config": dict(triple.target)},
            "growth": {"width": "mean-preserving", "depth": "identity"},
            "fit": {
                "steps": 1,
                "batch_size": triple.batch,
                "sequence_length": SEQUENCE,
                **HELDOUT,
                "data": data,
                **triple.fit,
            },
            "compare": {"eval_points": 1},
            "output": {"dir": str((folder / "grown").resolve())},
        }
        file = folder / ("source.yaml" if made is None else "recipe.yaml")
        file.write_text(json.dumps(recipe, indent=1))
        return file

    def parameters(self, triple: Triple) -> dict[str, int]:
        return api.plan(self.recipe(triple, made=None)).parameters

    def tokens(self, triple: Triple) -> int:
        """Return the tokens of a step."""
        return triple.batch * (64 if triple.images else SEQUENCE)

    def steps(self, triple: Triple) -> int:
        return round(triple.budget * self.parameters(triple)["target"] / self.tokens(triple))

    def source(self, triple: Triple) -> Path:
        """Return the recipe to choose with; train its source first where one is at hand."""
        if triple.trained is None:
            return self.recipe(triple, made=None)
        made = self.out / triple.name / "grown" / TRAINED_SOURCE
        steps = round(triple.trained * self.parameters(triple)["source"] / (4 * self.tokens(triple)))
        if not made.exists():
            api.convert(self.recipe(triple, made=None, steps=steps), progress=Told())
        return self.recipe(triple, made=made)

    def run(self, triple: Triple) -> Iterator[str]:
        """Carry out the parts of a triple, one at a time, and yield what comes next. The full training does not look at the choice."""
        yield "the source"
        file, folder, steps = self.source(triple), self.out / triple.name, self.steps(triple)
        recipe = api.load_recipe(file)
        yield "the full training"
        full = self.train(
            recipe,
            folder / "full",
            lambda plan: whole_list(plan, steps=steps, seeds=self.seeds, decays=self.decays),
            {"decays": self.decays, "rates": RATES, "factors": FACTORS},
        )
        yield "the choice"
        choice = choose(recipe, folder / "choice", steps=steps, jobs=self.jobs, progress=Told()).record["choice"]
        yield "the training of the choice"
        best = next(row for row in full["candidates"] if row["name"] == choice["name"])
        self.train(
            recipe,
            folder / "picked",
            lambda plan: picked_alone(plan, steps=steps, seeds=self.seeds, choice=choice, best=best),
            {"choice": dict(choice)},
        )

    def train(
        self, recipe: Recipe, out: Path, make: Callable[[Plan], FullTraining], settings: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Train candidates in full, and return the record."""
        study = Study(
            noun="full training",
            record=RECORD,
            format=FORMAT,
            make=make,
            scheduler=FullScheduler,
            settings=lambda experiment: settings,
            announce=announce,
            conclude=conclude,
            write=lambda record, staging: None,
        )
        return carry_out(study, recipe, out, jobs=self.jobs, progress=Told()).record


SEQUENCE: Final = 64

HELDOUT: Final = {"heldout_tokens": 32768, "heldout_images": 1024}


def announce(experiment: Experiment, progress: Progress) -> None:
    times = FullScheduler.expected_flops(experiment) / experiment.scratch_flops
    progress.say(f"{len(experiment.entries)} candidates in full: about {times:.0f} times scratch, and the seeds")


def reading(choice: Mapping[str, Any], full: Mapping[str, Any], picked: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far a choice is from the best: records of the choice, of all candidates in full, and of the choice in full."""
    name, rows = choice["choice"]["name"], full["candidates"]
    best = min((row for row in rows if row["seeds"] > 1 or row is rows[0]), key=lambda row: row["loss"])
    tried = picked["candidates"][0]["tried"]
    own, advised = min(one["loss"] for one in tried), tried[0]["loss"]
    curve = [tuple(point) for point in full["scratch"]]
    row = next(row for row in choice["candidates"] if row["name"] == name)
    projected = row["projection"] or {"loss": math.nan, "low": math.nan, "high": math.nan}
    return {
        "picked": name,
        "best": best["name"],
        "points": points_between(curve, own, best["loss"]),
        "nats": own - best["loss"],
        "points_advised": points_between(curve, advised, best["loss"]),
        "nats_advised": advised - best["loss"],
        "rank": next(number for number, row in enumerate(rows, 1) if row["name"] == name),
        "of": len(rows),
        "cost": 100 * (choice["cost"]["share"] + choice["cost"]["source_share"]),
        "confidence": choice["choice"]["confidence"],
        "projected_off": projected["loss"] - own,
        "in_range": projected["low"] <= own <= projected["high"],
    }


def line(triple: Triple, found: Mapping[str, Any]) -> str:
    kind = "held apart " if triple.held else "development"
    return (
        f"{triple.name:13} {kind} picked {found['picked']} ({found['confidence']}, rank {found['rank']} of {found['of']}),"
        f" best {found['best']}: {found['points']:.1f} points ({found['nats']:+.3f} nats) behind;"
        f" at the advised rate {found['points_advised']:.1f} ({found['nats_advised']:+.3f});"
        f" projected {found['projected_off']:+.3f} nats off, {'in' if found['in_range'] else 'outside'} its range;"
        f" choose cost {found['cost']:.0f} % of the budget"
    )


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/triples"), show_default=True)
@click.option("--only", "names", multiple=True, type=click.Choice([one.name for one in TRIPLES]), help="These triples.")
@click.option("--held", is_flag=True, help="The triples that are held apart.")
@click.option("--images", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Images by class.")
@click.option("--minutes", type=float, default=math.inf, help="Begin nothing after so many minutes.")
@click.option("--jobs", default=1, show_default=True)
@click.option("--seeds", default=3, show_default=True, help="Seeds of the best few and of the choice.")
@click.option(
    "--decay",
    "decays",
    multiple=True,
    type=float,
    default=(1.0,),
    show_default=True,
    help="Decays of the full training, as shares of the steps.",
)
@click.option("--list", "listed", is_flag=True, help="Print the triples and what scratch costs, and train nothing.")
def main(
    out: Path,
    names: tuple[str, ...],
    held: bool,
    images: Path | None,
    minutes: float,
    jobs: int,
    seeds: int,
    decays: tuple[float, ...],
    listed: bool,
) -> None:
    """Choose, train every candidate in full, and print how far the choices are from the best."""
    bench = Bench(out=out, images=images, jobs=jobs, seeds=tuple(range(seeds)), decays=decays)
    wanted = [one for one in TRIPLES if (one.name in names if names else one.held or not held)]
    wanted = [one for one in wanted if images is not None or not one.images]
    end, found = time.monotonic() + 60 * minutes, []
    for triple in wanted:
        if listed:
            parameters = bench.parameters(triple)
            click.echo(
                f"{triple.name:13} {parameters['source']:,} to {parameters['target']:,} parameters, {bench.steps(triple)} steps"
            )
            continue
        for part in bench.run(triple):
            if time.monotonic() > end:
                click.echo(f"{triple.name}: the time is over before {part}; the same command goes on")
                break
            click.echo(f"  {triple.name}: {part}", err=True)
        else:
            folder = out / triple.name
            files = ("choice/choose.json", f"full/{RECORD}", f"picked/{RECORD}")
            found.append(reading(*(read(folder / file) for file in files)))
            click.echo(line(triple, found[-1]))
    if found:
        right = sum(one["points"] <= WITHIN for one in found)
        advised = sum(one["points_advised"] <= WITHIN for one in found)
        click.echo(
            f"{right} of {len(found)} choices are within {WITHIN:g} points of the best, {advised} at the learning rate that was advised"
        )


if __name__ == "__main__":
    main()
