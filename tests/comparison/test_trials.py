"""Trials as planned and as judged, with losses that follow a known law: who goes on, what is paid, who is chosen. Nothing is trained."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.source_models import SIZES, fit_section, recipe_text

from ligo_convert.cli.choice_report import print_choice
from ligo_convert.comparison.advice import advice, sentences
from ligo_convert.comparison.chosen_recipe import write_chosen
from ligo_convert.comparison.experiment import Choice, Experiment, make_experiment
from ligo_convert.comparison.outcome import outcome
from ligo_convert.comparison.projection import BEST_RATIO, FLOPS_A_PARAMETER, SIZE_POWER
from ligo_convert.comparison.scheduler import Scheduler, TrainingJob
from ligo_convert.comparison.trials import (
    HALF_WAY,
    TRAINED_ON,
    Trials,
    TrialScheduler,
    default_rounds,
    make_trials,
)
from ligo_convert.conversion.plan import Plan, make_plan
from ligo_convert.conversion.train_plan import make_train_plan
from ligo_convert.errors import RecipeError
from ligo_convert.recipes.recipe import Recipe, load_recipe
from ligo_convert.recipes.schema import ChooseConfig, CompareConfig
from ligo_convert.training.runs import Stage

GPT2 = {"model_type": "gpt2", **SIZES["gpt2"]}
TARGET = {"n_embd": 32, "n_head": 4, "n_layer": 4}
DEEPER = {"n_layer": 4}
COMPARE = {"learning_rates": [0.01], "optimizers": ["adamw"], "decays": [0.4], "rate_factors": [1.0]}
SOURCE_LOSS = 3.7
FREQUENCY_LOSS = 6.0  # of knowing only how frequent each token is; no trial here comes near it

Loss = Callable[[Any, str, float], float | None]  # (experiment, entry, share of the budget) -> loss


def plan_of(
    folder: Path,
    target: Mapping[str, object] = TARGET,
    *,
    source: Mapping[str, object] = GPT2,
    at_hand: bool = True,
    source_steps: int = 100,
    sections: Mapping[str, Any] | None = None,
    **choose: object,
) -> Plan:
    found = {
        "fit": fit_section(data={"stdlib": True}),
        "compare": COMPARE,
        "choose": {"steps": 10_000, "source_rate_factors": [1.0], **choose},
        **(sections or {}),
    }
    recipe = json.loads(recipe_text("org/small", target, **found))
    recipe["source"] = {"model": "org/small", "config": source}
    if not at_hand:
        trained = {"config": source, "steps": source_steps, "batch_size": 3, "sequence_length": 16}
        recipe["source"] = {"pretrain": trained}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return make_plan(load_recipe(path), None, check_disk=False)


def trials_of(plan: Plan, **more: Any) -> Trials:
    return make_trials(plan, **{"candidates": None, "steps": None, "seeds": None, **more})


def tried(trials: Trials, loss: Loss, worse: Callable[[TrainingJob], float] = lambda job: 0.0) -> TrialScheduler:
    """A scheduler whose jobs are done, with the losses of a law. `worse` says by how much the settings of a run miss it."""
    scheduler, flops = TrialScheduler(trials, {}), dict[str, float]()
    while (job := scheduler.next_job()) is not None:
        found = result_of(trials, job, loss, flops)
        if found.get("loss") is not None and job.run is not None:
            found |= {key: found[key] + worse(job) for key in ("loss", "validation_loss")}
        scheduler.done(job, found)
    return scheduler


def result_of(trials: Experiment, job: TrainingJob, loss: Loss, flops: dict[str, float]) -> dict[str, Any]:
    if job.kind == "probe":
        return {"flops_a_second": 1e9, "frequency_loss": FREQUENCY_LOSS}
    if job.kind == "source":
        return {"loss": SOURCE_LOSS, "accuracy": None}
    flops[job.name] = flops.get(job.parent, 0.0) + job.flops
    found: dict[str, Any] = {"curve": [], "flops": flops[job.name]}
    if job.ends:
        value = loss(trials, job.entry, flops[job.name] / trials.scratch_flops)
        value = None if value is None else value + 0.002 * job.seed
        found |= {"loss": value, "validation_loss": value, "accuracy": None}
    return found


def record_of(scheduler: TrialScheduler) -> dict[str, Any]:
    return advice(scheduler, key="0", label="small", data={}, versions={})


# Small models are ahead early, and where the budget is small; a start is worth a share of the budget.
DRAWN = ("scratch", "source-size", "half-depth")
HEAD = {"mean-preserving/interpolate": 0.30, "mean-preserving/identity": 0.28, "mean-preserving/stack": 0.15}
LEAST, SLOPE, POWER = 2.5, 0.6, 0.28


def known(trials: Trials, name: str, share: float) -> float:
    """A loss by the law that the projection takes: a larger model can learn more, and what a source has learned is worth tokens."""
    target, size = (trials.legs(trials.entries[one])[-1].size for one in ("scratch", name))
    budget = trials.steps * trials.tokens
    lack = POWER / SIZE_POWER * (BEST_RATIO * target / FLOPS_A_PARAMETER / budget) ** -POWER
    lack *= (size / target) ** -SIZE_POWER
    head = 0.0 if name in DRAWN else HEAD.get(name, 0.05)
    return float(LEAST + SLOPE * (lack + (speed(trials, name) * share + head) ** -POWER))


def speed(trials: Trials, name: str) -> float:
    """The tokens that a model reads at the cost of one token of the target."""
    return trials.legs(trials.entries["scratch"])[0].size / trials.legs(trials.entries[name])[-1].size


# --- who is tried -----------------------------------------------------------------------------------------------------


def test_a_source_at_hand_grows_at_once_later_in_part_or_not_at_all(tmp_path: Path) -> None:
    trials = trials_of(plan_of(tmp_path))
    kinds = {kind: [name for name, own in trials.kinds.items() if own == kind] for kind in trials.kinds.values()}
    assert kinds == {
        "scratch": ["scratch"],
        "smaller": ["source-size"],
        "trained on": [TRAINED_ON],
        "part way": ["only deeper", "only wider"],
        "grown at once": [
            *(f"mean-preserving/{depth}" for depth in ("identity", "interpolate", "stack", "silent-drawn")),
            "sparkling/interpolate",
        ],
        "grown later": ["mean-preserving/identity@0.25+source", "mean-preserving/identity@0.5+source"],
    }
    deeper, wider = (trials.entries[name].planned[0].stage.config for name in ("only deeper", "only wider"))
    assert (deeper["n_layer"], deeper["n_embd"]) == (4, 16)
    assert (wider["n_layer"], wider["n_embd"], wider["n_head"]) == (2, 32, 4)


def test_where_only_depth_grows_widths_are_not_tried(tmp_path: Path) -> None:
    trials = trials_of(plan_of(tmp_path, DEEPER))
    assert "copy/interpolate" in trials.entries
    assert not any("mean-preserving" in name or name.startswith("only") for name in trials.entries)
    only_wider = trials_of(plan_of(tmp_path, {"n_embd": 32, "n_head": 4}))
    assert {"mean-preserving/copy", "sparkling/copy", "net2net/copy"} <= set(only_wider.entries)


@pytest.mark.parametrize(
    ("target", "between"),
    [
        ({"n_layer": 4}, {"n_layer": 3}),
        ({"n_layer": 5}, {"n_layer": 3}),
        ({"n_embd": 32, "n_head": 4}, {"n_embd": 24, "n_head": 3}),
        ({"n_layer": 3}, None),
        ({"n_embd": 24, "n_head": 3}, None),
    ],
)
def test_where_one_of_width_and_depth_grows_a_size_between_is_tried(
    tmp_path: Path, target: dict[str, object], between: dict[str, int] | None
) -> None:
    trials = trials_of(plan_of(tmp_path, target))
    found = [entry for name, entry in trials.entries.items() if trials.kinds[name] == "part way"]
    assert len(found) == (between is not None)
    for entry in found:
        assert entry.name == HALF_WAY
        config = entry.planned[0].stage.config
        assert between is not None
        assert {key: config[key] for key in between} == between


# Those of two layers, each beside a silent copy.
TYPES = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_size_between_has_as_many_layer_types_as_layers(tmp_path: Path, family: str) -> None:
    source = {"model_type": family, **SIZES["llama"], "use_sliding_window": True, "sliding_window": 8}
    source["layer_types"] = TYPES[::2]
    deeper = {"num_hidden_layers": 4, "layer_types": TYPES}
    wider = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4}
    wider |= {"head_dim": 4} if family == "qwen3" else {}
    source |= {"head_dim": 4} if family == "qwen3" else {}
    for target, expected in (
        ({**deeper, **wider}, {"only wider": TYPES[::2], "only deeper": TYPES}),
        (deeper, {HALF_WAY: TYPES[:3]}),
        (wider, {HALF_WAY: TYPES[::2]}),
    ):
        trials = trials_of(plan_of(tmp_path, target, source=source))
        entries = {name: entry for name, entry in trials.entries.items() if trials.kinds[name] == "part way"}
        configs = {name: entry.planned[0].stage.config for name, entry in entries.items()}
        assert {name: config["layer_types"] for name, config in configs.items()} == expected
        assert all(len(config["layer_types"]) == config["num_hidden_layers"] for config in configs.values())


def test_what_never_grows_from_random_weights_is_no_growth(tmp_path: Path) -> None:
    """It is trained in another way than scratch, so that it does not say by which law the loss of scratch falls."""
    others = ("ki", "scratch+layer-drop")
    trials = trials_of(plan_of(tmp_path), candidates=others)
    assert [trials.kinds[name] for name in others] == ["trained otherwise"] * 2

    def ahead(by: float) -> TrialScheduler:
        return tried(trials, lambda trials, name, share: known(trials, name, share) - (by if name in others else 0.0))

    found, equal = record_of(ahead(0.4)), record_of(ahead(0.0))
    losses = [
        {row["name"]: row["projection"]["loss"] for row in record["candidates"] if row["name"] in DRAWN}
        for record in (found, equal)
    ]
    assert losses[0] == losses[1], "the law is that of the others"
    candidates = ahead(0.4).candidates()
    assert {name for name, one in candidates.items() if one.is_drawn} == {"scratch", "source-size"}
    assert found["choice"]["name"] in others
    assert (found["choice"]["kind"], found["choice"]["grows"]) == ("trained otherwise", False)
    headline = f"Do not grow: train the target from random weights by the method {found['choice']['name']};"
    assert headline in found["text"][0]


def test_without_a_source_it_grows_on_the_way(tmp_path: Path) -> None:
    trials = trials_of(plan_of(tmp_path, at_hand=False))
    assert set(trials.kinds.values()) == {"scratch", "smaller", "grown on the way"}
    assert {"source-size", "mean-preserving/identity@0.4", "g-stack", "progressive"} <= set(trials.entries)
    assert all(entry.source is None for entry in trials.entries.values()), "nothing pays for a source"


def test_the_recipe_and_the_command_line_name_candidates(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, candidates=["lemon/stack"], shares=[0.2, 0.1], seeds=[1, 2])
    trials = trials_of(plan)
    assert [name for name, kind in trials.kinds.items() if kind == "grown at once"] == ["lemon/stack"]
    assert (trials.rounds, trials.seeds, trials.steps) == ((0.1, 0.2), (1, 2), 10_000)
    trials = trials_of(plan, candidates=["lemon"], steps=500, seeds=[3])
    assert "lemon/stack" not in trials.entries
    assert (trials.seeds, trials.steps) == ((3,), 500)


def test_what_cannot_be_chosen_is_refused(tmp_path: Path) -> None:
    same = {"n_embd": 16, "n_head": 2, "n_layer": 2}
    for plan, told, more in (
        (plan_of(tmp_path, same), "nothing to choose", {}),
        (plan_of(tmp_path), "no method 'lemom'", {"candidates": ["lemom"]}),
        (plan_of(tmp_path), r"\+source is for methods that grow on the way", {"candidates": ["lemon+source"]}),
        (plan_of(tmp_path), "makes a choice of its own", {"candidates": ["chosen"]}),
        (
            plan_of(tmp_path),
            "the decay of all trials is the one that scratch finds",
            {"candidates": ["late+decay@0.2"]},
        ),
        (plan_of(tmp_path, steps=None), "budget that the choice is for is not set", {}),
    ):
        with pytest.raises(RecipeError, match=told) as error:
            trials_of(plan, **more)
        assert error.value.exit_code == 2


def test_small_budgets_get_longer_trials() -> None:
    assert default_rounds(100_000) == (0.02, 0.04)
    assert default_rounds(5_000) == pytest.approx((0.03, 0.06))
    assert default_rounds(1_000) == pytest.approx((0.15, 0.3))
    assert default_rounds(500) == (0.16, 0.32), "trials may not cost any share of the budget"


# --- rounds -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> TrialScheduler:
    return tried(trials_of(plan_of(tmp_path_factory.mktemp("trials"))), known)


def test_the_better_half_of_a_kind_goes_on(done: TrialScheduler) -> None:
    def of(kind: str, number: int) -> set[str]:
        return {name for name in done.survivors(number) or () if done.experiment.kinds[name] == kind}

    assert len(of("grown at once", 0)) == 5
    assert of("grown at once", 1) == {
        "mean-preserving/interpolate",
        "mean-preserving/identity",
        "mean-preserving/stack",
    }
    # Models of different sizes do not compete for a place.
    for number in range(2):
        assert {"scratch", "source-size", TRAINED_ON, "only wider", "only deeper"} <= set(done.survivors(number) or ())
    assert len(of("grown later", 1)) == 1


def test_every_trial_of_a_round_costs_the_same(done: TrialScheduler) -> None:
    trials = done.experiment
    for number, share in enumerate(trials.rounds):
        for name in done.survivors(number) or ():
            end = done.trial(name, number)
            assert end is not None
            assert end["share"] == share
            # A step of the smallest model is the least that a trial can be longer or shorter by.
            cost = trials.run_flops(trials.entries[name], end["steps"])
            assert cost == pytest.approx(share * trials.scratch_flops, rel=0.02), name


def test_trunks_are_continued_and_paid_once(done: TrialScheduler) -> None:
    trials = done.experiment
    spent = done.spent()
    ends = [end["flops"] for name in trials.entries for end in done.ends_of(name)]
    longest = [done.ends_of(name)[-1]["flops"] for name in trials.entries]
    assert sum(longest) < spent["trials"] < 0.85 * sum(ends)
    assert spent["source"] == 0
    assert spent["trials"] == pytest.approx(TrialScheduler.expected_flops(trials), rel=0.1)


def test_it_goes_on_from_results_and_does_nothing_twice(tmp_path: Path) -> None:
    trials = trials_of(plan_of(tmp_path, DEEPER, shares=[0.01, 0.02]))
    whole = tried(trials, known)
    names = list(whole.results)
    scheduler, again = TrialScheduler(trials, {name: whole.results[name] for name in names[:15]}), list[str]()
    while (job := scheduler.next_job()) is not None:
        again.append(job.name)
        scheduler.done(job, whole.results[job.name])
    assert sorted(again) == sorted(names[15:])
    assert record_of(scheduler) == record_of(whole)


def test_states_are_kept_as_long_as_a_trial_may_start_from_them(tmp_path: Path) -> None:
    """The checkpoint from the first job on, before any run that starts from it is known."""
    trials = trials_of(plan_of(tmp_path, DEEPER, shares=[0.01, 0.02]))
    scheduler, flops = TrialScheduler(trials, {}), dict[str, float]()
    there = {"drawn"}
    while (job := scheduler.next_job()) is not None:
        assert job.parent in there, "the state that a job starts from is gone"
        scheduler.done(job, result_of(trials, job, known, flops))
        there = {"drawn"} | {name for name in {*there, job.name} if name in scheduler.needed_states()}


def test_all_seeds_run_the_longest_trials_alone(tmp_path: Path) -> None:
    found = tried(trials_of(plan_of(tmp_path, DEEPER, seeds=[0, 1, 2])), known)
    ends = found.ends_of("scratch")
    assert [end["seeds"] for end in ends] == [1, 3]
    assert ends[-1]["std"] == pytest.approx(0.002)
    record = record_of(found)
    # What the jobs here say of their costs is rounded.
    assert record["noise"] == {"nats": pytest.approx(0.002, rel=0.3), "measured": True}
    assert "measured over 3 seeds" in " ".join(record["text"])


# --- settings ---------------------------------------------------------------------------------------------------------

FACTORS = [0.15, 0.4, 1.0]


def test_by_default_scratch_alone_tries_several_rates(tmp_path: Path) -> None:
    """All others take a multiple of its rate, so that the trials can be longer for the same cost."""
    plan = plan_of(tmp_path)
    assert plan.recipe.compare is not None
    assert plan.recipe.choose is not None
    compare = {**plan.recipe.compare.model_dump(include={"optimizers", "decays"}), "learning_rates": [0.005, 0.01]}
    settings = {"compare": CompareConfig(**compare), "choose": ChooseConfig(steps=10_000)}
    trials = trials_of(replace(plan, recipe=plan.recipe.model_copy(update=settings)))
    found = tried(trials, known)
    best = found.choice()
    assert best is not None
    for name, entry in trials.entries.items():
        rates = {one.choice.learning_rate for one in found.wanted() if one.entry is entry}
        if name == "scratch":
            assert rates >= {0.005, 0.01}
        else:
            expected = best.learning_rate * (1.0 if entry.begins == "drawn" else 0.4)
            assert list(rates) == pytest.approx([expected]), name


def test_starts_from_a_source_try_low_rates_together(tmp_path: Path) -> None:
    """One start of a kind tries the rates for all of its kind."""
    trials = trials_of(plan_of(tmp_path, DEEPER, source_rate_factors=FACTORS, shares=[0.01, 0.02]))

    def low(job: TrainingJob) -> float:
        assert job.run is not None
        return job.run.learning_rate if job.entry not in DRAWN else 0.0

    found = tried(trials, known, low)
    for name, entry in trials.entries.items():
        expected = 0.01 if entry.begins == "drawn" else 0.0015
        assert found.choice_at(entry, 0).learning_rate == pytest.approx(expected), name  # type: ignore[union-attr]
        runs = {
            one.choice
            for one in found.wanted()
            if one.entry is entry and one.run.steps == trials.steps_of_round(entry, 0)
        }
        several = name in (TRAINED_ON, HALF_WAY, "copy/identity", "copy/identity@0.25+source")
        assert len(runs) == (3 if several else 1), name


def test_longer_trials_try_the_rate_that_they_favour(tmp_path: Path) -> None:
    """Higher ones from a source, lower ones for scratch, which all drawn models follow. The advice takes the last."""
    plan = plan_of(tmp_path, DEEPER, source_rate_factors=FACTORS, shares=[0.01, 0.02, 0.04])
    assert plan.recipe.compare is not None
    settings = plan.recipe.compare.model_copy(update={"learning_rates": [0.005, 0.01, 0.02], "decays": [0.4, 0.7]})
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"compare": settings}))
    trials = trials_of(plan)

    def worse(job: TrainingJob) -> float:
        """The best rates in the three rounds: 0.02, 0.01 and 0.005 for drawn weights; 0.15, 0.4 and 1 times that from a source."""
        assert job.run is not None
        entry = trials.entries[job.entry]
        number = min(range(3), key=lambda one: abs(trials.steps_of_round(entry, one) - job.run.steps))  # type: ignore[union-attr]
        best = (0.02, 0.01, 0.005)[number] if entry.begins == "drawn" else 0.02 * FACTORS[number]
        return 0.05 * abs(math.log(job.run.learning_rate / best)) + 0.1 * abs(job.run.decay / job.run.steps - 0.7)

    found = tried(trials, known, worse)
    for name in found.survivors(2) or ():
        entry = trials.entries[name]
        rates = [found.choice_at(entry, number).learning_rate for number in range(3)]  # type: ignore[union-attr]
        expected = [0.02, 0.01, 0.005] if entry.begins == "drawn" else [0.003, 0.008, 0.02]
        assert rates == pytest.approx(expected), name
        assert found.advised(entry).decay == 0.7
    record = record_of(found)
    # The longest trial has a twenty-fifth of the budget: from drawn weights, the rate falls by the cube root of that.
    assert record["optimizer"] == {"optimizer": "adamw", "learning_rate": pytest.approx(0.0017), "decay": 0.7}
    assert record["choice"]["learning_rate"] == pytest.approx(0.02 if record["choice"]["grows"] else 0.0017)
    assert "falling to zero over the last 70% of the steps" in record["text"][0]
    assert record["cost"]["flops"] == pytest.approx(TrialScheduler.expected_flops(trials), rel=0.5)


# --- advice -----------------------------------------------------------------------------------------------------------


def test_the_start_that_is_worth_most_is_chosen_although_others_are_ahead(done: TrialScheduler) -> None:
    record = record_of(done)
    choice, rows = record["choice"], {row["name"]: row for row in record["candidates"]}
    assert choice["name"] == "mean-preserving/interpolate"
    assert (choice["kind"], choice["grows"], choice["width"], choice["depth"]) == (
        "grown at once",
        True,
        "mean-preserving",
        "interpolate",
    )
    assert record["candidates"][0]["name"] == choice["name"]
    assert choice["gain_over_scratch"] > 0
    true = known(done.experiment, "scratch", 1.0) - known(done.experiment, choice["name"], 1.0)
    assert choice["gain_over_scratch"] == pytest.approx(true, abs=0.05)
    assert sum(row["projection"]["leads"] for row in rows.values()) == pytest.approx(1, abs=1e-6)
    assert record["cost"]["share"] == pytest.approx(done.spent()["trials"] / done.experiment.scratch_flops, abs=1e-4)
    text = " ".join(record["text"])
    assert "Grow the source at once, width by mean-preserving, depth by interpolate" in text
    assert f"{record['cost']['share']:.1%} of the budget" in text
    assert "unknown: one seed was run" in text
    json.dumps(record, allow_nan=False)


def small_wins(trials: Trials, name: str, share: float) -> float:
    return known(trials, name, share) if name in DRAWN else 3.0 + known(trials, "scratch", share)


def test_not_growing_is_said_where_it_is_better(tmp_path: Path) -> None:
    """Starts that are worth nothing, and a budget that is small for the target."""
    record = record_of(tried(trials_of(plan_of(tmp_path, DEEPER, steps=1000)), small_wins))
    assert record["choice"]["name"] == "source-size"
    assert not record["choice"]["grows"]
    assert record["text"][0].startswith("Do not grow: train the smaller model (")
    assert record["choice"]["confidence"] == "clear"


def test_a_reversal_is_told_with_the_budgets_at_which_the_answer_changes(tmp_path: Path) -> None:
    def late(trials: Trials, name: str, share: float) -> float:
        return known(trials, name, share) if name in DRAWN else 4.5 + 0.2 * share**-0.4

    record = record_of(tried(trials_of(plan_of(tmp_path, at_hand=False, steps=60_000)), late))
    assert record["choice"]["name"] == "scratch"
    assert record["choice"]["ahead_now"] != "scratch"
    text = " ".join(record["text"])
    assert "Do not grow: train the target from random weights" in text
    assert "The projection to the whole budget reverses this" in text
    assert {row["name"] for row in record["by_budget"] if row["times"] >= 1} == {"scratch"}


def test_trials_on_a_plateau_are_never_a_clear_choice(tmp_path: Path) -> None:
    """The same losses as in a clear choice, of tokens whose mere frequencies are worth nearly as much."""
    trials = trials_of(plan_of(tmp_path, DEEPER, steps=1000))
    found = tried(trials, small_wins)
    clear = record_of(found)
    assert (clear["choice"]["confidence"], clear["early"]["too_early"], clear["longer"]) == ("clear", False, None)
    found.results["probe"]["frequency_loss"] = 4.2
    record = record_of(found)
    assert record["choice"]["name"] == clear["choice"]["name"]
    assert record["choice"]["confidence"] == "open"
    assert set(record["early"]["on_plateau"]) == {"scratch", "source-size"}
    spread, before = (one["candidates"][0]["projection"] for one in (record, clear))
    assert spread["high"] - spread["low"] > 2 * (before["high"] - before["low"])
    text = " ".join(record["text"])
    assert "ended on the plateau that training begins with" in text
    assert "choose.shares above 0.3" in text
    assert record["text"][-1].endswith(record["longer"]["command"])
    assert record["longer"]["shares"] == pytest.approx([0.5, 1.0])


def test_an_open_choice_says_which_command_decides(tmp_path: Path) -> None:
    """Two starts that are worth the same. The command names both, and is accepted."""
    trials = trials_of(plan_of(tmp_path, DEEPER, seeds=[0, 1]))
    record = record_of(
        tried(trials, lambda trials, name, share: known(trials, "scratch" if "/" in name else name, share))
    )
    assert record["choice"]["confidence"] == "open"
    longer = record["longer"]
    words = shlex.split(longer["command"])
    assert words[:3] == ["ligo-convert", "choose", "recipe.yaml"]
    named = words[words.index("--candidates") + 1].split(",")
    assert set(named) == {name for name in longer["candidates"] if "/" in name} or named == ["scratch"]
    assert words[words.index("--set") + 1] == "choose.shares=[0.04,0.08]"
    assert words[words.index("--seeds") + 1] == "0,1"
    again = trials_of(plan_of(tmp_path, DEEPER, shares=longer["shares"]), candidates=named)
    assert set(longer["candidates"]) <= set(again.entries)
    assert again.rounds == pytest.approx((0.04, 0.08))


def test_where_the_longest_trials_have_the_whole_budget_none_are_longer(tmp_path: Path) -> None:
    trials = trials_of(plan_of(tmp_path, DEEPER, steps=1000, shares=[0.5, 1.0]))
    record = record_of(
        tried(trials, lambda trials, name, share: known(trials, "scratch" if "/" in name else name, share))
    )
    assert record["choice"]["confidence"] == "open"
    assert record["longer"] is None
    assert "more seeds (--seeds 0,1,2)" in record["text"][-1]
    assert "`ligo-convert compare`" in record["text"][-1]
    assert "longer trials" not in " ".join(record["text"]).lower()


def test_a_budget_or_less_is_said_only_where_one_leads_at_all_of_them(done: TrialScheduler) -> None:
    record = record_of(done)
    chosen = record["choice"]["name"]

    def told(*names: str) -> list[str]:
        times = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
        leaders = [{"times": one, "name": name} for one, name in zip(times, names, strict=True)]
        found = sentences({**record, "by_budget": leaders})
        return [one for one in found if "times the budget" in one]

    a, b = "source-size", "scratch"
    assert told(a, a, a, a, chosen, chosen, chosen) == [f"With 0.5 times the budget or less, {a} is projected to lead."]
    assert told(a, a, a, b, chosen, b, b) == [
        f"With 0.25 times the budget or less, {a} is projected to lead.",
        f"With 0.5 times the budget, {b} is projected to lead.",
        f"With 2 and 4 times the budget, {b} is projected to lead.",
    ]
    assert told(a, b, a, a, chosen, chosen, a) == [
        f"With 0.05, 0.25 and 0.5 times the budget, {a} is projected to lead.",
        f"With 0.1 times the budget, {b} is projected to lead.",
        f"With 4 times the budget, {a} is projected to lead.",
    ]
    assert told(chosen, a, a, chosen, chosen, chosen, chosen) == [
        f"With 0.1 and 0.25 times the budget, {a} is projected to lead."
    ]
    assert told(*[chosen] * 7) == ["The answer is the same from 0.05 to 4 times the budget."]


def test_a_start_that_the_budget_does_not_pay_for_is_ahead_and_not_chosen(tmp_path: Path) -> None:
    name = "lemon/identity"
    trials = trials_of(plan_of(tmp_path, at_hand=False, source_steps=20_000, steps=1940), candidates=[name])

    def far_ahead(trials: Trials, entry: str, share: float) -> float:
        return 2.0 - share if entry == name else known(trials, entry, share)

    record = record_of(tried(trials, far_ahead))
    assert record["choice"]["ahead_now"] == name != record["choice"]["name"]
    row = next(row for row in record["candidates"] if row["name"] == name)
    assert (row["steps"], row["projection"]) == (0, None)
    times = row["source_flops"] / record["budget"]["flops"]
    text = " ".join(record["text"])
    assert f"But the budget does not pay for its source, whose training costs {times:.1f} times the budget." in text
    assert "reverses this" not in text

    def broken(trials: Trials, entry: str, share: float) -> float | None:
        """Scratch comes to nothing in its longest trial, and the smaller models in every one."""
        return 2.0 if entry == name else 3.0 if entry == "scratch" and share < trials.rounds[-1] * 0.9 else None

    record = record_of(tried(trials, broken))
    assert all(row["projection"] is None for row in record["candidates"])
    assert record["choice"]["name"] == "scratch", "nobody can train what is ahead"


# --- the choice as a recipe -------------------------------------------------------------------------------------------


def written(folder: Path, plan: Plan, name: str) -> tuple[dict[str, Any], Trials, Recipe | None]:
    """The record of a choice that falls on a candidate, the trials, and the recipe that is written; None if none is."""
    trials = trials_of(plan, candidates=[name])
    record = record_of(
        tried(trials, lambda trials, entry, share: 1.0 - share if entry == name else known(trials, entry, share))
    )
    assert record["choice"]["name"] == name
    file = folder / "chosen.yaml"
    assert write_chosen(plan.recipe, record, file) == file.exists()
    assert file.exists() == (record["choice"]["not_written"] is None)
    return record, trials, load_recipe(file) if file.exists() else None


SHORT = {"shares": [0.01, 0.02]}


@pytest.mark.parametrize(
    ("name", "at_hand", "told"),
    [
        ("lemon/identity", True, "depth by identity; "),
        ("lemon/identity", False, "depth by identity; "),
        ("lemon/stack+cosine", True, "depth by stack; "),
        ("lemon/identity@0.25+source", True, "depth by identity; "),
        (
            "lemon/stack@0.25+source+warm+copy",
            True,
            "with a new warmup after the growth and the optimizer's state by copy",
        ),
        ("lemon/identity@0.4", False, "depth by identity, after 40% of the steps"),
        ("sparkling", False, "with a new warmup after the growth, after 50% of the steps"),
        ("schedule", True, "Train the source on, then grow it as growth.schedule says"),
        ("schedule", False, "Train from random weights and grow during training as growth.schedule says"),
    ],
)
def test_what_is_written_is_trained_as_it_was_chosen(tmp_path: Path, name: str, at_hand: bool, told: str) -> None:
    growth = {"width": "copy", "depth": "stack", "operator": {"tie": "paper"}}
    if name == "schedule":
        growth = {"width": "lemon", "depth": "stack", "schedule": [{"at": 0.3, "state": "reset", "warmup_steps": 7}]}
    plan = plan_of(tmp_path, DEEPER, at_hand=at_hand, sections={"growth": growth}, **SHORT)
    record, trials, recipe = written(tmp_path, plan, name)
    assert recipe is not None
    assert told in record["text"][0]
    trained = make_train_plan(make_plan(recipe.for_training(), None, check_disk=False)).run
    choice, entry = record["choice"], trials.entries[name]
    advised = Choice(optimizer=choice["optimizer"], learning_rate=choice["learning_rate"], decay=choice["decay"])
    wanted = trials.make_run(entry, advised, seed=0, steps=choice["steps"])
    assert (trained.start == "drawn") == (entry.begins == "drawn")
    for key in ("steps", "shape", "learning_rate", "batch_size", "optimizer"):
        assert getattr(trained, key) == getattr(wanted, key), key
    assert trained.shape == "cosine" or trained.decay == wanted.decay

    def read(stage: Stage) -> Stage:
        # At the first step there is no state of an optimizer.
        growth = stage.growth if stage.begin or stage.growth is None else replace(stage.growth, state="reset")
        return replace(stage, growth=growth)

    assert [read(stage) for stage in trained.stages] == [read(stage) for stage in wanted.stages]


@pytest.mark.parametrize(
    ("name", "at_hand", "headline", "why"),
    [
        ("lemon/identity@0.25+source", False, "grow it, width by lemon", "give it as source.model"),
        ("lemon/identity@0.4", True, "Train from random weights and grow", "as source.pretrain.config instead"),
        (
            "lemon/identity+copy",
            False,
            "with the optimizer's state by copy",
            "takes no optimizer's state from a source",
        ),
        ("lemon/identity+fit", True, "with a learned operator", "learns no operator; set growth.width: lemon"),
        ("ligo", True, "with a learned operator", "`ligo-convert run` learn it"),
        ("ligo-paper", True, "with a learned tied operator", "no key for a learned tied operator"),
        ("mango", True, "with a learned tensor ring", "no key for a learned tensor ring"),
        (
            "ligo+token-drop",
            True,
            "with a learned operator and token-drop",
            "no key for token-drop and a learned operator",
        ),
        ("lemon/identity+token-drop", True, "with token-drop", "no key for token-drop"),
        ("lemon/identity@0.4+layer-drop", False, "with layer-drop", "no key for layer-drop"),
        ("freeze", True, "with the strategy added-only", "no key for the strategy added-only"),
        ("bert2bert", True, "depth by stack, with the strategy two-stage", "no key for the strategy two-stage"),
        ("mslt", False, "grow during training: mslt", "no key for the strategy layerwise"),
        ("g-stack", False, "grow during training: g-stack", "the others in growth.schedule"),
    ],
)
def test_what_train_cannot_do_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, at_hand: bool, headline: str, why: str
) -> None:
    target = {**DEEPER, "n_embd": 32, "n_head": 4} if name == "freeze" else DEEPER
    record, _, recipe = written(tmp_path, plan_of(tmp_path, target, at_hand=at_hand, **SHORT), name)
    assert recipe is None
    assert headline in record["text"][0]
    assert record["text"][1].startswith("`--write` writes no recipe: ")
    assert why in record["text"][1]
    print_choice(record, tmp_path, width=200)
    assert "--write chosen.yaml" not in capsys.readouterr().out
    row = record["candidates"][0]
    assert row["options"] == name.split("+")[1:]
    assert {key: row[key] for key in ("strategy", "fit")} == {key: record["choice"][key] for key in ("strategy", "fit")}


def test_candidates_that_come_to_nothing_fall_out(tmp_path: Path) -> None:
    def broken(trials: Trials, name: str, share: float) -> float | None:
        return None if "stack" in name or name == TRAINED_ON else known(trials, name, share)

    found = tried(trials_of(plan_of(tmp_path, DEEPER)), broken)
    record = record_of(found)
    rows = {row["name"]: row for row in record["candidates"]}
    assert len(rows["copy/stack"]["trials"]) == len(rows[TRAINED_ON]["trials"]) == 1
    assert rows["copy/stack"]["projection"] is None
    assert record["candidates"][-1]["projection"] is None
    assert sentences(record) == record["text"]


def test_scratch_that_comes_to_nothing_at_every_rate_is_the_recipes_fault(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not finite at any learning rate"):
        tried(trials_of(plan_of(tmp_path, DEEPER)), lambda trials, name, share: None)


# --- the method `chosen` of a comparison ------------------------------------------------------------------------------


def test_the_start_that_is_ahead_is_trained_on_and_all_trials_are_charged(tmp_path: Path) -> None:
    compare = {"steps": 4000, "scratch_fractions": [0.5, 1.0], "budget_fractions": [0.5, 1.0], "seeds": [0, 1]}
    plan = plan_of(tmp_path)
    assert plan.recipe.compare is not None
    settings = plan.recipe.compare.model_copy(update=compare)
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"compare": settings}))
    experiment = make_experiment(plan, methods=["chosen"], steps=None)
    chosen = experiment.entries["chosen"]
    names = [f"chosen: mean-preserving/{depth}" for depth in ("identity", "interpolate", "stack")]
    assert [start.name for start in chosen.starts] == names
    best = {0: names[1], 1: names[2]}

    def loss(_: Experiment, name: str, share: float) -> float:
        return 4.0 - share - (0.5 if name == best[seed] else 0.0)

    scheduler, flops, trained = Scheduler(experiment, {}), dict[str, float](), list[TrainingJob]()
    while (job := scheduler.next_job()) is not None:
        seed = job.seed
        trained.append(job)
        scheduler.done(job, result_of(experiment, job, loss, flops))
    for seed, name in best.items():
        found = scheduler.start_chosen(chosen, seed)
        assert found is not None
        assert found.name == name
    trial = experiment.run_flops(chosen.starts[0], experiment.trial_steps(chosen.starts[0]))
    assert trial == pytest.approx(0.03 * experiment.scratch_flops, rel=0.02)
    # Two trials for nothing, and the decay of the third: the run goes on from its trunk.
    assert experiment.extra_flops(chosen) == pytest.approx((2 + 0.4) * trial)
    turn = round(experiment.trial_steps(chosen.starts[0]) * 0.6)
    assert any(job.first == pytest.approx(turn, abs=1) and job.entry == best[0] and job.seed == 0 for job in trained)
    for ends in scheduler.finished_runs()["chosen"].values():
        for end, share in zip(ends["ends"], (0.5, 1.0), strict=True):
            assert end["flops"] == pytest.approx(share * experiment.scratch_flops, rel=0.02)
    record = outcome(scheduler, key="0", label="small", data={}, versions={})["methods"]["chosen"]
    assert record["chose"].keys() == {"0", "1"}
    assert min(record["chose"]["1"], key=record["chose"]["1"].get) == best[1]
    assert record["flops"]["fit"] == experiment.extra_flops(chosen)
