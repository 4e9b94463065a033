"""A training goes on from a grown checkpoint: the optimizer's state beside the source grows with the weights."""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from support.optimizer_states import MakeGroups, Model, trainer_groups, with_state
from support.outputs import resign
from support.source_models import DEEPER, GROWN, recipe_text, write_checkpoint
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from ligo_convert.cli.main import cli
from ligo_convert.conversion.convert import convert
from ligo_convert.conversion.plan import plan_recipe
from ligo_convert.conversion.run_record import ConversionResult
from ligo_convert.errors import LigoError, MachineError, OutputBusy, RecipeError, SourceError, VerificationError
from ligo_convert.growth.moments import grown_moments
from ligo_convert.growth.operator_file import family_of, read_operator
from ligo_convert.growth.state_maps import DEFAULT_POLICY
from ligo_convert.importing.sandbox import support
from ligo_convert.outputs.layout import OPERATOR, PROVENANCE, TRAINING_STATE
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import load_recipe
from ligo_convert.training.state import optimizer_state, read_optimizer_state

pytestmark = pytest.mark.skipif(support() is not None, reason=str(support()))


def grown(place: Path, target: dict[str, object], *, out: str = "out", **growth: object) -> ConversionResult:
    (place / "recipe.yaml").write_text(recipe_text(place / "source", target, growth=growth))
    return convert(load_recipe(place / "recipe.yaml", out=str(place / out)))


def loaded(out: Path, groups: MakeGroups = trainer_groups, *, file: str = "optimizer.pt") -> dict[str, dict[str, Any]]:
    """The state of an optimizer that has loaded an output's file, by the names of its model's parameters."""
    model: Model = transformers.AutoModelForCausalLM.from_pretrained(out)
    optimizer = torch.optim.AdamW(groups(model), lr=1.0)
    optimizer.load_state_dict(torch.load(out / file, weights_only=True))
    assert optimizer.param_groups[0]["lr"] == 1e-4
    return {name: dict(optimizer.state[found]) for name, found in model.named_parameters() if found in optimizer.state}


def test_the_state_of_a_trainer_grows_by_the_operator_of_the_weights(tmp_path: Path) -> None:
    """Some seconds: two runs. Every tensor of the state is what `grown_moments` gives, under the right parameter; the rest goes along."""
    source = write_checkpoint(tmp_path / "source", tokenizer=False)
    moments = with_state(source)
    state = {"global_step": 3, "log_history": [], "best_metric": 1.5, "best_model_checkpoint": "/tmp/x/checkpoint-2"}
    (source / "trainer_state.json").write_text(json.dumps(state))
    (source / "training_args.bin").write_bytes(pickle.dumps(Path("/home/me")))
    outcome = grown(tmp_path, GROWN["gpt2"], state="carry", depth="identity", width="lemon")
    out = tmp_path / "out"
    operator = read_operator(out / OPERATOR)
    expected = grown_moments(operator, family_of(operator), moments, policy="carry")
    found = loaded(out)
    assert set(found) == set(expected)
    assert len(found) > 20
    for name, kinds in expected.items():
        assert set(found[name]) == set(kinds)
        for kind, value in kinds.items():
            assert torch.equal(found[name][kind], value), (name, kind)
    assert json.loads((out / "trainer_state.json").read_text()) == {
        **state,
        "best_metric": None,
        "best_model_checkpoint": None,
    }
    files = outcome.json()["files"]
    assert files["training"] == ["optimizer.pt", "trainer_state.json"]
    assert [left["path"] for left in files["left_behind"]] == ["training_args.bin"]
    internal = json.loads((out / PROVENANCE).read_text())["predicate"]["buildDefinition"]["internalParameters"]
    assert internal["trainingState"]["policy"] == "carry"
    assert set(internal["trainingState"]["files"]) == {"optimizer.pt", "trainer_state.json"}
    assert verify(out)["files"] > 5
    derived = verify(out, source=str(source))["derived"]
    assert derived["identical"] > 20
    assert derived["training"] == 2
    # The same run again changes nothing; the same recipe beside another state is another run.
    assert not grown(tmp_path, GROWN["gpt2"], state="carry", depth="identity", width="lemon").changed
    with_state(source, steps=4)
    with pytest.raises(OutputBusy, match="state of the training"):
        grown(tmp_path, GROWN["gpt2"], state="carry", depth="identity", width="lemon")


def not_derived(out: Path, name: str, source: Path, match: str) -> None:
    """A file that another one has replaced: its digest tells, and growing it again tells where somebody has changed the digests, too."""
    with pytest.raises(VerificationError, match="the file changed since it was written"):
        verify(out)
    resign(out, name)
    verify(out)
    with pytest.raises(VerificationError, match=match):
        verify(out, source=str(source))


@pytest.mark.slow
def test_a_grown_state_is_derived_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow: a dozen confined processes read pickles. What digests cannot tell, the source does."""
    source = write_checkpoint(tmp_path / "source", tokenizer=False)
    with_state(source)
    (source / "trainer_state.json").write_text('{"global_step": 3}')
    grown(tmp_path, GROWN["gpt2"], state="carry", depth="identity", width="lemon")
    out, file = tmp_path / "out", tmp_path / "out" / "optimizer.pt"
    content, plain = torch.load(file, weights_only=True), file.read_bytes()
    # Other bytes of the same content, as another version of torch may write them.
    torch.save(content, file, _use_new_zipfile_serialization=False)
    resign(out, file.name)
    assert verify(out, source=str(source))["derived"]["training"] == 2
    # One bit of one value; and a setting of the optimizer.
    first = content["state"][0]["exp_avg"]
    first.view(torch.int32)[0, 0] ^= 1
    torch.save(content, file)
    not_derived(out, file.name, source, r"out/optimizer.pt: .state.\.0\..exp_avg.: the optimizer's state differs")
    with monkeypatch.context() as patched:
        patched.setattr("ligo_convert.outputs.verify.processor", lambda: "another")
        assert verify(out, source=str(source))["derived"]["training"] == 2
    content = torch.load(io.BytesIO(plain), weights_only=True)
    content["param_groups"][0]["weight_decay"] = 0.5
    torch.save(content, file)
    not_derived(out, file.name, source, "weight_decay.: the optimizer's state differs")
    file.write_bytes(plain)
    resign(out, file.name)
    (out / "trainer_state.json").write_text("{}")
    not_derived(out, "trainer_state.json", source, "trainer_state.json: the file differs from the one that its source")
    with_state(source, steps=4)
    with pytest.raises(VerificationError, match="not the state of the training that the output was grown from"):
        verify(out, source=str(source))
    (source / "optimizer.pt").unlink()
    with pytest.raises(VerificationError, match="not the source of the model: there is no state of an optimizer"):
        verify(out, source=str(source))
    (out / PROVENANCE).write_text((out / PROVENANCE).read_text().replace('"trainingState"', '"other"'))
    resign(out, PROVENANCE)
    with pytest.raises(VerificationError, match="trainingState does not say"):
        verify(out, source=str(source))


def test_the_state_of_an_own_training_grows(tmp_path: Path) -> None:
    """What `train` has stored beside a model grows with it, and another `train` takes it up from the output."""
    source = write_checkpoint(tmp_path / "source", tokenizer=False)
    moments = with_state(source)
    (source / "ligo").mkdir()
    (source / TRAINING_STATE).write_bytes(b"".join(bytes(piece) for piece in optimizer_state(moments)))
    outcome = grown(tmp_path, GROWN["gpt2"], state="scale", depth="identity", width="lemon")
    # The state of this program's own training goes before another's.
    assert outcome.json()["files"]["training"] == [TRAINING_STATE]
    operator = read_operator(tmp_path / "out" / OPERATOR)
    expected = grown_moments(operator, family_of(operator), moments, policy="scale")
    found = read_optimizer_state(tmp_path / "out" / TRAINING_STATE)
    assert set(found) == set(expected)
    for name, kinds in expected.items():
        for kind, value in kinds.items():
            assert torch.equal(torch.as_tensor(found[name][kind]), value), (name, kind)
    assert verify(tmp_path / "out", source=str(source))["derived"]["training"] == 1
    name = next(iter(found))
    found[name]["exp_avg"][..., 0] += 1e-3
    (tmp_path / "out" / TRAINING_STATE).write_bytes(b"".join(bytes(piece) for piece in optimizer_state(found)))
    not_derived(tmp_path / "out", TRAINING_STATE, source, re.escape(f"{TRAINING_STATE}: {name}/exp_avg"))


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        pytest.param(lambda model: model.parameters(), "optimizer.bin", id="accelerate"),
        pytest.param(
            lambda model: list(reversed(list(model.named_parameters()))),
            "optimizer.pt",
            id="names",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_other_orders_of_the_parameters_are_found(tmp_path: Path, groups: MakeGroups, file: str) -> None:
    """One group, as most loops with accelerate have it; and an optimizer that was made from named parameters, in any order."""
    source = write_checkpoint(tmp_path / "source", tokenizer=False)
    moments = with_state(source, groups, file=file)
    grown(tmp_path, DEEPER["gpt2"], state="scale", depth="identity", width="copy")
    out = tmp_path / "out"
    state = torch.load(out / file, weights_only=True)
    names = state["param_groups"][0].get("param_names")
    if names is None:
        model: Model = transformers.AutoModelForCausalLM.from_pretrained(out)
        names = [name for name, _ in model.named_parameters()]
    by_name = {names[number]: found for number, found in state["state"].items()}
    # Layers 0 and 2 continue the layers of the source, 1 and 3 are new.
    for name, found in by_name.items():
        old = name.replace(".h.2.", ".h.1.")
        torch.testing.assert_close(found["exp_avg"], moments[old]["exp_avg"])
        torch.testing.assert_close(found["exp_avg_sq"], moments[old]["exp_avg_sq"])
    assert not any(".h.1." in name or ".h.3." in name for name in by_name)
    assert len(names) == len(moments) + 24


def test_the_memory_for_a_state_is_asked_for_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are streamed; the state is in memory as a whole."""
    source = write_checkpoint(tmp_path / "source", tokenizer=False)
    monkeypatch.setattr("ligo_convert.conversion.plan.physical_memory", lambda: 10**8)
    recipe = tmp_path / "recipe.yaml"
    for state in ({}, {"state": "carry"}):
        recipe.write_text(recipe_text(source, DEEPER["gpt2"], growth={"width": "copy", "depth": "identity", **state}))
        if not state:
            plan_recipe(load_recipe(recipe, out=str(tmp_path / "out")))
            continue
        with pytest.raises(MachineError, match="optimizer's state needs more memory") as caught:
            plan_recipe(load_recipe(recipe, out=str(tmp_path / "out")))
        assert "--with-optimizer" in caught.value.hint


def test_the_option_takes_the_default_policy(tmp_path: Path) -> None:
    """Some seconds: two runs, with the option and without."""
    source = write_checkpoint(tmp_path / "source", tokenizer=False)
    with_state(source)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(source, DEEPER["gpt2"], growth={"width": "copy", "depth": "identity"}))

    def run(out: str, *options: str) -> dict[str, Any]:
        done = CliRunner().invoke(cli, ["run", str(recipe), "--out", str(tmp_path / out), "--json", *options])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    assert "training" not in run("plain")["files"]
    assert not (tmp_path / "plain" / "optimizer.pt").exists()
    assert run("out", "--with-optimizer")["files"]["training"] == ["optimizer.pt"]
    assert f"state: {DEFAULT_POLICY}" in (tmp_path / "out" / "ligo" / "recipe.yaml").read_text()
    assert "trainingState" not in (tmp_path / "plain" / PROVENANCE).read_text()


def test_an_optimizer_without_a_rule_of_growth_is_named_as_the_reason(tmp_path: Path) -> None:
    """Adafactor keeps rows and columns, whose shapes fit no parameter: other names for the parameters would not help."""
    source = write_checkpoint(tmp_path / "source", tokenizer=False)
    model = transformers.GPT2LMHeadModel.from_pretrained(source)
    optimizer = torch.optim.Adafactor(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), source / "optimizer.pt")
    with pytest.raises(SourceError, match="which has no rule of growth") as caught:
        grown(tmp_path, DEEPER["gpt2"], state="scale", depth="identity", width="copy")
    assert "optimizer.pt" in caught.value.where
    assert "without the optimizer's state" in caught.value.hint


@pytest.mark.slow
def test_a_state_that_is_not_there_or_not_understood_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", tokenizer=False)

    def refused(error: type[LigoError], match: str) -> None:
        with pytest.raises(error, match=match):
            grown(tmp_path, DEEPER["gpt2"], state="scale", depth="identity", width="copy")
        assert not (tmp_path / "out").exists()

    refused(SourceError, "no state of an optimizer")
    (source / "optimizer.pt").symlink_to(source / "model.safetensors")
    refused(SourceError, "no state of an optimizer")
    (source / "optimizer.pt").unlink()
    torch.save({"a": torch.ones(2)}, source / "optimizer.pt")
    refused(SourceError, "not the state of an optimizer")
    with_state(source, lambda model: list(model.parameters())[:-1])
    refused(SourceError, "fits no known order")
    with_state(source)
    state = torch.load(source / "optimizer.pt", weights_only=True)
    state["state"][0]["exp_avg"][0, 0] = float("nan")
    torch.save(state, source / "optimizer.pt")
    refused(SourceError, "1 values of the optimizer's state are NaN")
    sections = {"source": {"model": None, "pretrain": {"config": {"model_type": "gpt2"}, "steps": 1}}}
    text = recipe_text(source, DEEPER["gpt2"], growth={"state": "scale", "width": "copy", "depth": "identity"})
    trained = json.loads(text) | sections
    (tmp_path / "trained.yaml").write_text(json.dumps(trained))
    with pytest.raises(RecipeError, match="trained by this recipe"):
        convert(load_recipe(tmp_path / "trained.yaml", out=str(tmp_path / "out")))


class _Opens:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/ligo-should-not-exist"),))


@pytest.mark.slow
def test_a_pickle_that_runs_code_is_neither_run_nor_handed_on(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", tokenizer=False)
    with_state(source)
    (source / "scheduler.pt").write_bytes(pickle.dumps(_Opens()))
    outcome = grown(tmp_path, DEEPER["gpt2"], state="reset", depth="identity", width="copy")
    assert outcome.json()["files"]["training"] == ["optimizer.pt"]
    assert not (tmp_path / "out" / "scheduler.pt").exists()
    assert not Path("/tmp/ligo-should-not-exist").exists()
    assert torch.load(tmp_path / "out" / "optimizer.pt", weights_only=True)["state"] == {}
    (source / "optimizer.pt").write_bytes(pickle.dumps(_Opens()))
    with pytest.raises(SourceError, match=r"torch.load\(weights_only=True\) refuses it"):
        grown(tmp_path, DEEPER["gpt2"], state="reset", depth="identity", width="copy", out="other")
    assert not Path("/tmp/ligo-should-not-exist").exists()


# --- a real training goes on ------------------------------------------------------------------------------------------

BEFORE, AFTER = 200, 200
# Tokens are pairs of letters of a text that repeats itself, so that a tiny model learns in some hundred steps.
SMALL = {"vocab_size": 300, "n_positions": 32, "n_embd": 32, "n_head": 2, "n_layer": 2}
LARGE: dict[str, object] = {"n_embd": 48, "n_head": 3, "n_layer": 4}


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Windows of a text of words in a drawn order; the last ones are held out."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        words = torch.randint(3, 300, (60, 6), generator=draw)
        order = torch.multinomial(torch.arange(1, 61).float(), 6000, replacement=True, generator=draw)
        self.tokens = words[order].flatten()

    def __len__(self) -> int:
        return 4000

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        begin = number * 7919 % (len(self.tokens) - 4032)
        return dict.fromkeys(("input_ids", "labels"), self.tokens[begin : begin + 32])

    def held_out(self) -> torch.Tensor:
        return self.tokens[-4000:].unfold(0, 32, 32)


class Curve(transformers.TrainerCallback):
    """The held-out loss at the start, at each of the first steps, and at every tenth."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.tokens = Windows().held_out()

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.losses[state.global_step] = loss_of(others["model"], self.tokens)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step % 10 == 0 or BEFORE < state.global_step <= BEFORE + 10:
            self.losses[state.global_step] = loss_of(others["model"], self.tokens)


def loss_of(model: Model, tokens: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        loss = float(model(input_ids=tokens, labels=tokens).loss)
    model.train()
    return loss


def fresh(config: dict[str, Any], seed: int = 0) -> Model:
    torch.manual_seed(seed)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**config, **ends}))


def check_curve(
    grown: dict[int, float], control: dict[int, float], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures of the acceptance: an exact start, no spike, and never more than 0.05 nats above the control."""
    apart = {step: loss - control[step] for step, loss in grown.items()}
    first = [loss for step, loss in sorted(grown.items()) if step <= BEFORE + 10]
    with capsys.disabled():
        print(
            f"\n{what}: step 0 {grown[BEFORE]:.5f}, source {control[BEFORE]:.5f}; at most {max(apart.values()):+.4f} nats above the"
            f" control, at the end {apart[max(apart)]:+.4f} ({grown[max(grown)]:.4f} and {control[max(control)]:.4f})"
        )
    assert abs(apart[BEFORE]) < 1e-4
    assert max(apart.values()) < 0.05
    assert max(first) < first[0] + 0.05
    assert len(apart) > 25


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_trainer_goes_on_from_a_grown_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slow: 600 steps of a real Trainer. `checkpoint-N`, grown with its optimizer, resumes as if nothing had happened."""

    def train(model: Model, resume: Path | None = None) -> dict[int, float]:
        curve = Curve()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "training"),
            max_steps=BEFORE + AFTER,
            per_device_train_batch_size=8,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            save_strategy="no" if resume else "steps",
            save_steps=BEFORE,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=Windows(), callbacks=[curve])
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        assert trainer.state.global_step == BEFORE + AFTER
        assert trainer.optimizer.state_dict()["state"][0]["step"] == BEFORE + AFTER
        return curve.losses

    control = train(fresh(SMALL))
    assert control[BEFORE] < control[10] - 0.5, "the case: the source has learned something"
    (tmp_path / "source").symlink_to(tmp_path / "training" / f"checkpoint-{BEFORE}")
    outcome = grown(tmp_path, LARGE, width="lemon", depth="identity", state=DEFAULT_POLICY)
    files = ["optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]
    assert outcome.json()["files"]["training"] == files
    assert verify(tmp_path / "out", load=True)
    larger = transformers.GPT2LMHeadModel(transformers.AutoConfig.from_pretrained(tmp_path / "out"))
    check_curve(train(larger, tmp_path / "out"), control, "Trainer", capsys)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_accelerate_goes_on_from_a_grown_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slow: 600 steps. The directory of `save_state`, with the model's config.json beside it, is a source like another."""
    import accelerate

    def train(model: Model, steps: range, *, load: Path | None = None, save: Path | None = None) -> dict[int, float]:
        accelerator = accelerate.Accelerator(cpu=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, BEFORE + AFTER)
        model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
        if load is not None:
            accelerator.load_state(str(load))
            assert schedule.get_last_lr()[0] < 2e-3
        data, tokens = Windows(), Windows().held_out()
        losses = {steps.start: loss_of(model, tokens)}
        for step in steps:
            batch = torch.stack([data[step * 8 + number]["input_ids"] for number in range(8)])
            accelerator.backward(model(input_ids=batch, labels=batch).loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if (step + 1) % 10 == 0 or BEFORE <= step < BEFORE + 10:
                losses[step + 1] = loss_of(model, tokens)
            if step + 1 == BEFORE and save is not None:
                accelerator.save_state(str(save))
                accelerator.unwrap_model(model).config.save_pretrained(save)
        accelerator.free_memory()
        return losses

    control = train(fresh(SMALL), range(BEFORE + AFTER), save=tmp_path / "source")
    outcome = grown(tmp_path, LARGE, width="lemon", depth="identity", state=DEFAULT_POLICY)
    assert outcome.json()["files"]["training"] == ["optimizer.bin", "random_states_0.pkl", "scheduler.bin"]
    larger = transformers.GPT2LMHeadModel(transformers.AutoConfig.from_pretrained(tmp_path / "out"))
    check_curve(train(larger, range(BEFORE, BEFORE + AFTER), load=tmp_path / "out"), control, "accelerate", capsys)


# --- shards of torch.distributed.checkpoint ---------------------------------------------------------------------------


def sharded_state(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """As accelerate stores it under FSDP."""
    return {"optimizer": get_optimizer_state_dict(model, optimizer)}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_sharded_state_grows_and_is_loaded_as_torch_loads_it(tmp_path: Path) -> None:
    """Some seconds: the process that reads shards loads torch.distributed."""
    source = write_checkpoint(tmp_path / "source", tokenizer=False)
    moments = with_state(source)
    (source / "optimizer.pt").unlink()
    model: Model = transformers.AutoModelForCausalLM.from_pretrained(source)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = moments[name]
    checkpoint.save(sharded_state(model, optimizer), checkpoint_id=source / "optimizer_0", no_dist=True)
    outcome = grown(tmp_path, GROWN["gpt2"], state="carry", depth="identity", width="lemon")
    out = tmp_path / "out"
    assert outcome.json()["files"]["training"] == ["optimizer_0/.metadata", "optimizer_0/__0_0.distcp"]
    assert verify(out, source=str(source))["derived"]["training"] == 2
    for file in ("optimizer_0/.metadata", "optimizer_0/__0_0.distcp"):
        assert str(tmp_path).encode() not in (out / file).read_bytes()
    operator = read_operator(out / OPERATOR)
    expected = grown_moments(operator, family_of(operator), moments, policy="carry")
    larger: Model = transformers.AutoModelForCausalLM.from_pretrained(out)
    after = torch.optim.AdamW(larger.parameters(), lr=1.0)
    state = sharded_state(larger, after)
    checkpoint.load(state, checkpoint_id=out / "optimizer_0", no_dist=True)
    set_optimizer_state_dict(larger, after, state["optimizer"])
    assert after.param_groups[0]["lr"] == 1e-4
    for name, parameter in larger.named_parameters():
        for kind, value in after.state[parameter].items():
            wanted = expected[name][kind] if name in expected else torch.zeros_like(value)
            assert torch.equal(value, wanted), (name, kind)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_table_of_shards_that_runs_code_is_refused(tmp_path: Path) -> None:
    """Slow: two conversions. Neither the table nor a value of a sharded checkpoint builds what it likes."""
    source = write_checkpoint(tmp_path / "source", tokenizer=False)
    (source / "optimizer_0").mkdir()
    table = source / "optimizer_0" / ".metadata"
    table.write_bytes(pickle.dumps(_Opens(), protocol=2))
    with pytest.raises(SourceError, match="shards cannot be read"):
        grown(tmp_path, DEEPER["gpt2"], state="carry", depth="identity", width="copy")
    table.unlink()
    content = {"optimizer": {"state": {}, "param_groups": _Opens()}}
    checkpoint.save(content, checkpoint_id=source / "optimizer_0", no_dist=True)
    Path("/tmp/ligo-should-not-exist").unlink(missing_ok=True)
    with pytest.raises(SourceError, match="shards cannot be read"):
        grown(tmp_path, DEEPER["gpt2"], state="carry", depth="identity", width="copy")
    assert not Path("/tmp/ligo-should-not-exist").exists()
