"""The data that a plan loads: epochs that are said, tokens on the disk, masks, images that are augmented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.source_models import fit_section, recipe_text, write_case, write_checkpoint, write_images, write_text

from ligo_convert.conversion.identity import compute_digests
from ligo_convert.conversion.plan import Plan, make_plan, open_planned
from ligo_convert.conversion.splits import load_pretraining_splits, load_splits
from ligo_convert.data.examples import IGNORED
from ligo_convert.data.token_store import TokenFolder
from ligo_convert.io.strict_json import sha256_of
from ligo_convert.progress import Progress
from ligo_convert.recipes.recipe import load_recipe


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def planned(path: Path) -> Plan:
    source = open_planned(load_recipe(path), weights=True)
    try:
        return make_plan(load_recipe(path), source, check_disk=False)
    finally:
        if source is not None:
            source.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "source")


@pytest.fixture
def text_plan(tmp_path: Path, model: Path) -> Callable[..., Plan]:
    def make(**changes: object) -> Plan:
        (tmp_path / "corpus").mkdir(exist_ok=True)
        write_text(tmp_path / "corpus" / "a.txt", lines=300)
        recipe = recipe_text(model, {"n_layer": 4}, **{"fit": fit_section(), **changes})
        (tmp_path / "recipe.yaml").write_text(recipe)
        return planned(tmp_path / "recipe.yaml")

    return make


def test_more_steps_than_the_text_holds_are_epochs_and_said(text_plan: Callable[..., Plan], model: Path) -> None:
    plan, said = text_plan(), Said()
    whole = load_splits(plan, model, progress=said, train_examples=20)
    assert len(whole.train) == 20
    assert said.lines == []
    splits = load_splits(plan, model, progress=said, train_examples=10_000)
    held = len(splits.train)
    assert 20 < held < 10_000
    assert splits.sizes["train"] == 16 * held
    assert said.lines == [
        f"the training split has {16 * held:,} tokens, all that the data holds: 10,000 examples are"
        f" {10_000 / held:.1f} epochs"
    ]
    # Held-out splits are those of the shorter run, and every epoch has every example.
    assert np.array_equal(splits.test.take([0, 1])["input_ids"], whole.test.take([0, 1])["input_ids"])
    batches = [splits.batch(step, batch_size=held, seed=0)["input_ids"] for step in (0, 3)]
    assert not np.array_equal(*batches)
    assert sorted(map(tuple, batches[0])) == sorted(map(tuple, batches[1]))


def test_the_training_of_a_source_says_its_epochs(text_plan: Callable[..., Plan], model: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 300, "n_positions": 64}
    source = {"model": None, "pretrain": {"config": config, "steps": 5_000, "batch_size": 2}}
    plan, said = text_plan(source=source), Said()
    assert plan.pretrain is not None
    splits = load_pretraining_splits(plan, plan.pretrain, model, progress=said)
    assert len(said.lines) == 1
    assert said.lines[0].endswith(f"10,000 examples are {10_000 / len(splits.train):.1f} epochs")


def test_tokens_on_the_disk_are_those_in_memory(text_plan: Callable[..., Plan], model: Path, tmp_path: Path) -> None:
    plan = text_plan()
    folder = TokenFolder(path=tmp_path / "tokens", owner="me", warn=print)
    memory = load_splits(plan, model, progress=Progress(), train_examples=50)
    disk = load_splits(plan, model, progress=Progress(), train_examples=50, token_folder=folder)
    assert memory.digest == disk.digest
    assert (folder.path / "ids.bin").stat().st_size
    for step in (0, 7):
        one, other = (splits.batch(step, batch_size=8, seed=0)["input_ids"] for splits in (memory, disk))
        assert np.array_equal(one, other)


def test_images_are_augmented_as_the_recipe_says(tmp_path: Path) -> None:
    source = write_case(tmp_path / "source", "cait")
    write_images(tmp_path / "photos", classes=5)
    found = {}
    for name, augment in (("plain", {}), ("augmented", {"augment": ["flip", "crop"]})):
        fit = fit_section(heldout_images=4, data={"images": "photos", **augment})
        (tmp_path / f"{name}.yaml").write_text(recipe_text(source, {"depth": 3}, fit=fit))
        said = Said()
        found[name] = load_splits(planned(tmp_path / f"{name}.yaml"), None, progress=said, train_examples=96)
        assert said.lines == ["the training split has 32 images, all that the data holds: 96 examples are 3.0 epochs"]
    plain, augmented = found["plain"], found["augmented"]
    assert plain.digest != augmented.digest
    same = [
        np.array_equal(plain.batch(step, batch_size=32, seed=0)["pixel_values"], batch["pixel_values"])
        for step in range(3)
        for batch in [augmented.batch(step, batch_size=32, seed=0)]
    ]
    assert same == [False, False, False]
    for one, other in ((plain.test, augmented.test), (plain.validation, augmented.validation)):
        assert np.array_equal(one.take(range(4))["pixel_values"], other.take(range(4))["pixel_values"])


def test_the_masks_are_as_many_as_the_recipe_says(tmp_path: Path) -> None:
    source = write_case(tmp_path / "source", "bert", tokenizer=True)
    (tmp_path / "corpus").mkdir()
    write_text(tmp_path / "corpus" / "a.txt", lines=600)
    asked = {}
    for probability in (None, 0.4):
        fit = fit_section(sequence_length=32, **({"mask_probability": probability} if probability else {}))
        (tmp_path / "recipe.yaml").write_text(recipe_text(source, {"num_hidden_layers": 4}, fit=fit))
        splits = load_splits(planned(tmp_path / "recipe.yaml"), source, progress=Progress(), train_examples=120)
        for name, examples in (("train", splits.train), ("test", splits.test)):
            labels = examples.take(range(len(examples)), draw=1)["labels"][:, 1:-1]
            asked[probability, name] = float((labels != IGNORED).mean())
    assert asked[None, "train"] == pytest.approx(0.15, abs=0.02)
    assert asked[0.4, "train"] == pytest.approx(0.4, abs=0.03)
    assert asked[0.4, "test"] == pytest.approx(0.4, abs=0.1)


def test_a_trained_source_is_known_by_all_that_it_sees(
    text_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source is taken from the cache of another recipe only if it was trained on the same examples."""
    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 300, "n_positions": 64}
    source = {"model": None, "pretrain": {"config": config, "steps": 5, "batch_size": 2}}

    def trained(**changes: object) -> str:
        plan = text_plan(source=source, fit=fit_section(**changes))
        return compute_digests(plan, None, {}, Progress()).trained

    plain = trained()
    assert trained(mask_probability=0.15) == plain
    assert trained(mask_probability=0.3) != plain
    # Recipes from before these keys existed keep their digest.
    plan = text_plan(source=source)
    assert plan.pretrain is not None
    held = {"sequence_length": 16, "heldout_tokens": 256, "heldout_images": 512, "seed": 0}
    parts = compute_digests(plan, None, {}, Progress()).parts
    settings = plan.pretrain.settings.model_dump(mode="json")
    assert sha256_of({"data": parts["data"], "pretrain": settings, "held": held}) == plain
    hub = [trained(data={"hub": {"id": f"org/{name}"}}) for name in ("one", "two")]
    assert len({*hub, plain}) == 3


def test_a_source_trained_on_augmented_images_is_another(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", classes=5)
    sizes = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 16, "num_heads": 2, "depth": 2}
    source = {"model": None, "pretrain": {"config": {"model_type": "vit", **sizes}, "steps": 5}}
    found = set()
    for augment in (None, ["flip"], ["flip", "crop"]):
        fit = fit_section(heldout_images=4, data={"images": "photos", "augment": augment})
        (tmp_path / "recipe.yaml").write_text(recipe_text("-", {"depth": 3}, fit=fit, source=source))
        found.add(compute_digests(planned(tmp_path / "recipe.yaml"), None, {}, Progress()).trained)
    assert len(found) == 3
