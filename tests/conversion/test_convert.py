"""A whole conversion in this process: what lies in the output, what it loads as, what a second run does, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.corpora import not_installed
from support.outputs import resign
from support.source_models import DEEPER, GROWN, fit_section, recipe_text, weights_of, write_checkpoint, write_text

import ligo_convert.conversion.plan
from ligo_convert.checkpoints.headers import parse_header
from ligo_convert.conversion.apply import apply_operator
from ligo_convert.conversion.convert import convert, fit_operator
from ligo_convert.conversion.plan import plan_recipe
from ligo_convert.conversion.run_record import ConversionResult
from ligo_convert.errors import (
    DataMissing,
    LigoError,
    MachineError,
    MissingExtra,
    OutputBusy,
    RecipeError,
    SourceChanged,
    SourceError,
    VerificationError,
)
from ligo_convert.outputs.verify import verify
from ligo_convert.recipes.recipe import Recipe, load_recipe

CANARY = "hf_canaryCanaryCanaryCanary"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Checkpoints by how they are written; each is written once."""
    folder, made = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def get(family: str = "gpt2", **options: object) -> Path:
        key = json.dumps([family, options], sort_keys=True, default=str)
        if key not in made:
            made[key] = write_checkpoint(folder / f"model-{len(made)}", family, **options)  # type: ignore[arg-type]
        return made[key]

    return get


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a corpus."""
    folder = tmp_path / "place"
    (folder / "corpus").mkdir(parents=True)
    write_text(folder / "corpus" / "a.txt")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def source(models: Callable[..., Path], place: Path) -> Path:
    """A tiny GPT-2 of one's own to damage."""
    return shutil.copytree(models(), place / "source")


def recipe_of(place: Path, model: Path | str, target: Mapping[str, object], /, **sections: object) -> Recipe:
    (place / "recipe.yaml").write_text(recipe_text(model, target, **sections))
    return load_recipe(Path(os.path.relpath(place / "recipe.yaml")))


def run(place: Path, model: Path | str, target: Mapping[str, object], /, **sections: object) -> ConversionResult:
    return convert(recipe_of(place, model, target, **sections))


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of every file below a folder."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def left_behind(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name.startswith(".") or path.name == "out")


def loads(directory: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype="auto")
    assert not any(info.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


# --- every kind of source ---------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2 tied": ("gpt2", {}),
    "gpt2 untied": ("gpt2", {"tied": False}),
    "gpt2 without prefix, with buffers": ("gpt2", {"prefix": False, "buffers": True}),
    "gpt2 with buffers": ("gpt2", {"buffers": True}),
    "gpt2 sharded": ("gpt2", {"shard": "20KB"}),
    "gpt2 bfloat16": ("gpt2", {"dtype": torch.bfloat16}),
    "gpt2 float16": ("gpt2", {"dtype": torch.float16}),
    "gpt2 float64": ("gpt2", {"dtype": torch.float64}),
    "llama": ("llama", {"tied": False}),
    "llama tied, sharded, bfloat16": ("llama", {"shard": "20KB", "dtype": torch.bfloat16}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_as_the_same_function_in_the_same_dtype(kind: str, models: Callable[..., Path], place: Path) -> None:
    family, options = KINDS[kind]
    outcome = run(place, models(family, **options), GROWN[family])
    kept = outcome.metrics["preservation"]
    assert (kept["planned"], kept["verdict"]) == ("exact", "exact")
    model = loads(place / "out")
    # The library calls old masks unexpected; growing leaves them out.
    old = transformers.AutoModelForCausalLM.from_pretrained(models(family, **options), dtype="auto").eval()
    dtype = options.get("dtype", torch.float32)
    assert {tensor.dtype for tensor in weights_of(place / "out").values()} == {dtype}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    config = json.loads((place / "out" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert config["architectures"] == [type(model).__name__]
    assert config.items() >= GROWN[family].items()
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        before, after = (found.double()(tokens).logits for found in (old, model))
    # Rounding the grown weights to two bytes costs something; the map itself costs nothing.
    tolerance = {torch.bfloat16: 0.15, torch.float16: 0.02}.get(dtype, 1e-4)  # type: ignore[call-overload]
    assert float((before - after).abs().max()) <= tolerance * max(1.0, float(before.abs().max()))
    rounded = kept["rounding"]
    assert (rounded is None) == (dtype not in (torch.bfloat16, torch.float16))
    report = verify(place / "out", source=str(models(family, **options)), load=True)
    assert report["derived"]["tensors"] == report["weights"]["tensors"] == outcome.metrics["verification"]["tensors"]


# --- the output directory ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def fitted(models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ConversionResult]:
    """A finished output of a fit, with secrets about while it was made, under a umask of its own."""
    place = tmp_path_factory.mktemp("fitted")
    (place / "corpus").mkdir()
    write_text(place / "corpus" / "a.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", CANARY)
        patch.setenv("USER", "zebediah-canary")
        patch.chdir(place)
        before = os.umask(0o027)
        try:
            outcome = run(place, models(), GROWN["gpt2"], fit=fit_section())
        finally:
            os.umask(before)
    return place, outcome


LAYOUT = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
    "README.md",
    "ligo/recipe.yaml",
    "ligo/operator.safetensors",
    "ligo/new_parameters.json",
    "ligo/provenance.json",
    "ligo/fit.jsonl",
    "ligo/fit.png",
    "ligo/SHA256SUMS",
}


def test_the_output_is_what_the_documentation_says(
    fitted: tuple[Path, ConversionResult], models: Callable[..., Path]
) -> None:
    out = fitted[0] / "out"
    assert set(snapshot(out)) == LAYOUT
    assert left_behind(fitted[0]) == ["out"], "nothing lies beside it"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (models() / name).read_bytes()
    with safe_open(out / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}
    loads(out)


def test_the_sums_are_those_of_every_other_file(fitted: tuple[Path, ConversionResult]) -> None:
    out = fitted[0] / "out"
    lines = (out / "ligo" / "SHA256SUMS").read_text().splitlines()
    assert [line[66:] for line in lines] == sorted(LAYOUT - {"ligo/SHA256SUMS"})
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "ligo/SHA256SUMS"], cwd=out, check=True)


def test_files_follow_the_umask(fitted: tuple[Path, ConversionResult]) -> None:
    modes = {path: path.stat().st_mode & 0o777 for path in (fitted[0] / "out").rglob("*")}
    wrong = {path: oct(mode) for path, mode in modes.items() if mode != (0o750 if path.is_dir() else 0o640)}
    assert wrong == {}
    assert (fitted[0] / "out").stat().st_mode & 0o777 == 0o750


def test_nothing_private_is_in_any_file(fitted: tuple[Path, ConversionResult], models: Callable[..., Path]) -> None:
    private = [CANARY, "zebediah-canary", str(fitted[0]), str(models().parent), str(Path.home()) + "/", "corpus"]
    for path in (fitted[0] / "out").rglob("*"):
        assert path.name not in private
        if path.is_file():
            data = path.read_bytes()
            assert [word for word in private if word.encode() in data] == [], path


def test_the_log_has_a_line_a_step(fitted: tuple[Path, ConversionResult]) -> None:
    lines = [json.loads(line) for line in (fitted[0] / "out" / "ligo" / "fit.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert [line["tokens"] for line in lines] == [32 * step for step in range(1, 7)]
    assert all(line.keys() >= {"loss", "learning_rate", "seconds"} for line in lines)


def test_the_written_recipe_loads_and_makes_the_same_weights(
    fitted: tuple[Path, ConversionResult], models: Callable[..., Path], place: Path
) -> None:
    written = fitted[0] / "out" / "ligo" / "recipe.yaml"
    again = load_recipe(written, source=str(models()), out="out", overrides=[f"fit.data.text=['{place}/corpus/*.txt']"])
    assert again.public() == load_recipe(written).public()
    asked, filled = load_recipe(fitted[0] / "recipe.yaml").public(), again.public()
    # What the recipe left open is written as it was chosen.
    assert filled["growth"]["operator"].pop("keying") == "shared"
    assert filled["fit"].pop("micro_batch_size") == filled["fit"]["batch_size"]
    assert filled["fit"].pop("warmup_steps") == 0
    assert filled["fit"].pop("threads") == 1
    del asked["growth"]["operator"]["keying"], asked["fit"]["micro_batch_size"], asked["fit"]["warmup_steps"]
    del asked["fit"]["threads"]
    assert filled == asked
    convert(again)
    for name in LAYOUT - {"README.md", "ligo/provenance.json", "ligo/fit.jsonl", "ligo/fit.png", "ligo/SHA256SUMS"}:
        assert (place / "out" / name).read_bytes() == (fitted[0] / "out" / name).read_bytes(), name


def test_a_fit_is_measured(fitted: tuple[Path, ConversionResult]) -> None:
    found = fitted[1].json()
    assert found["loss"]["initial"] == pytest.approx(found["loss"]["source"], abs=1e-4)
    assert found["loss"]["fitted"] < found["loss"]["initial"]
    assert found["preservation"]["verdict"] == "exact"
    assert found["parameters"]["source"] < found["parameters"]["target"]
    total = sum(tensor.numel() for tensor in weights_of(fitted[0] / "out").values())
    assert found["parameters"]["target"] == total
    assert found["flops"]["fit"] >= 6 * found["flops"]["target_step"] > 0
    assert found["seconds"].keys() == {"plan", "fit", "write", "verify"}
    assert found["peak_rss_bytes"] > 10**8


@pytest.mark.slow
def test_the_same_in_two_places_gives_the_same_bytes(models: Callable[..., Path], place: Path) -> None:
    kept = {}
    for name in ("here", "there"):
        folder = place / name
        (folder / "texts").mkdir(parents=True)
        write_text(folder / "texts" / f"{name}.txt")
        model = shutil.copytree(models(shard="20KB"), folder / f"model-{name}")
        fit = fit_section(f"texts/{name}.*")
        output = {"dir": str(folder / f"out-{name}"), "max_shard_size": "30KB"}
        run(folder, model, GROWN["gpt2"], fit=fit, output=output)
        out = folder / f"out-{name}"
        timed = ("README.md", "ligo/provenance.json", "ligo/fit.jsonl", "ligo/fit.png", "ligo/SHA256SUMS")
        kept[name] = {path: digest for path, (digest, _) in snapshot(out).items() if path not in timed}
        shards = sorted(path.name for path in out.glob("*.safetensors"))
        assert shards == [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        assert len(shards) > 2
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights_of(out).values())
        # An embedding larger than a file may be has one of its own.
        assert all(path.stat().st_size <= 32_000 for path in out.glob("model-*.safetensors"))
        loads(out)
    assert kept["here"] == kept["there"]


# --- again ------------------------------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing(models: Callable[..., Path], place: Path) -> None:
    first = run(place, models(), GROWN["gpt2"], fit=fit_section())
    before = snapshot(place)
    again = run(place, models(), GROWN["gpt2"], fit=fit_section())
    after = snapshot(place)
    assert {**after, "recipe.yaml": None} == {**before, "recipe.yaml": None}
    assert (first.changed, again.changed) == (True, False)
    assert json.loads(json.dumps(again.json())) == json.loads(json.dumps({**first.json(), "changed": False}))


@pytest.mark.parametrize("what", ["recipe", "source", "text", "versions"])
@pytest.mark.slow
def test_a_finished_output_of_something_else_is_left_alone(
    what: str, source: Path, models: Callable[..., Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(place, source, GROWN["gpt2"], fit=fit_section())
    before, changes = snapshot(place / "out"), dict[str, object]()
    if what == "recipe":
        changes = {"steps": 7}
    elif what == "source":
        shutil.copy(models(seed=1) / "model.safetensors", source)
    elif what == "text":
        write_text(place / "corpus" / "a.txt", seed=1)
    else:
        monkeypatch.setattr("ligo_convert.conversion.run_record.versions", lambda: {"ligo-convert": "0"})
        monkeypatch.setattr("ligo_convert.conversion.run_facts.versions", lambda: {"ligo-convert": "0"})
    with pytest.raises(OutputBusy, match="another recipe, source") as caught:
        run(place, source, GROWN["gpt2"], fit=fit_section(**changes))
    told = {
        "recipe": "recipe: fit.steps = 7",
        "source": "source: model.safetensors = SHA-256",
        "text": "the recipe names other data",
        "versions": "version of ligo-convert = 0",
    }[what]
    assert told in str(caught.value)
    assert snapshot(place / "out") == before
    assert left_behind(place) == ["out"]


@pytest.mark.slow
def test_a_tokenizer_elsewhere_belongs_to_the_recipe(models: Callable[..., Path], place: Path) -> None:
    tokenizer = place / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(models() / name, tokenizer)
    fit = fit_section(data={"text": ["corpus/*.txt"], "tokenizer": "tokenizer"})
    run(place, models(tokenizer=False), GROWN["gpt2"], fit=fit)
    assert run(place, models(tokenizer=False), GROWN["gpt2"], fit=fit).changed is False
    assert "tokenizer" not in "".join(snapshot(place / "out"))
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 63}))
    with pytest.raises(OutputBusy, match="another recipe, source"):
        run(place, models(tokenizer=False), GROWN["gpt2"], fit=fit)


@pytest.mark.parametrize("there", ["file", "folder", "link", "dangling link"])
def test_what_is_in_the_way_is_never_touched(there: str, models: Callable[..., Path], place: Path) -> None:
    out = place / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "folder":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        (place / "mine").mkdir(exist_ok=True)
        out.symlink_to(place / ("mine" if there == "link" else "nothing"))
    before = snapshot(place)
    with pytest.raises(OutputBusy):
        run(place, models(), GROWN["gpt2"])
    with pytest.raises(OutputBusy):
        plan_recipe(load_recipe(place / "recipe.yaml"))
    assert {**snapshot(place), "recipe.yaml": None} == {**before, "recipe.yaml": None}
    assert left_behind(place) == ["out"]


def test_a_damaged_output_of_the_same_run_is_not_passed_off_as_whole(models: Callable[..., Path], place: Path) -> None:
    run(place, models(), GROWN["gpt2"])
    flip(place / "out" / "model.safetensors")
    with pytest.raises(VerificationError, match=r"model\.safetensors"):
        run(place, models(), GROWN["gpt2"])


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "order"), [("stack", [0, 1, 0, 1]), ("interpolate", [0, 0, 1, 1])])
@pytest.mark.parametrize(("family", "dtype"), [("gpt2", torch.bfloat16), ("llama", torch.float16)])
def test_copied_layers_are_the_source_s_bytes(
    family: str, dtype: torch.dtype, depth: str, order: list[int], models: Callable[..., Path], place: Path
) -> None:
    model = models(family, dtype=dtype)
    outcome = run(place, model, DEEPER[family], growth={"width": "copy", "depth": depth})
    assert outcome.metrics["preservation"]["verdict"] is None
    assert outcome.metrics["preservation"]["max_logit_difference"] is None
    assert outcome.metrics["verification"]["loaded"] is None
    old, new = weights_of(model), weights_of(place / "out")
    before = "transformer.h." if family == "gpt2" else "model.layers."
    for name, tensor in new.items():
        if name.startswith(before):
            layer, _, rest = name.removeprefix(before).partition(".")
            name = f"{before}{order[int(layer)]}.{rest}"
        assert tensor.dtype == dtype
        assert torch.equal(tensor, old[name]), name
    loads(place / "out")


def test_copies_need_no_torch(models: Callable[..., Path], place: Path) -> None:
    recipe_of(place, models(dtype=torch.bfloat16), DEEPER["gpt2"], growth={"width": "copy", "depth": "stack"})
    code = (
        "import sys\nfrom pathlib import Path\nfrom ligo_convert.conversion.convert import convert\n"
        "from ligo_convert.recipes.recipe import load_recipe\nfrom ligo_convert.outputs.verify import verify\n"
        "convert(load_recipe(Path('recipe.yaml')))\n"
        "assert not convert(load_recipe(Path('recipe.yaml'))).changed\n"
        "verify(Path('out'), source=sys.argv[1])\n"
        "print([name for name in ('torch', 'transformers', 'tokenizers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(models(dtype=torch.bfloat16))],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(Path(ligo_convert.conversion.plan.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# --- learning apart from growing --------------------------------------------------------------------------------------


def test_fit_then_apply_gives_the_bytes_of_run(
    fitted: tuple[Path, ConversionResult], models: Callable[..., Path], place: Path
) -> None:
    recipe = recipe_of(place, models(), GROWN["gpt2"], fit=fit_section())
    figures = fit_operator(recipe, place / "grown.operator")
    assert figures["loss"] == fitted[1].metrics["loss"]
    assert sorted(path.name for path in place.iterdir()) == ["corpus", "grown.operator", "recipe.yaml"]
    with pytest.raises(OutputBusy, match="this file exists"):
        fit_operator(recipe, place / "grown.operator")
    apply_operator(place / "grown.operator", str(models()), place / "out")
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "ligo/new_parameters.json",
    ):
        assert (place / "out" / name).read_bytes() == (fitted[0] / "out" / name).read_bytes(), name
    verify(place / "out", source=str(models()), load=True)
    # A sibling: the same shape, other weights.
    apply_operator(place / "grown.operator", str(models(seed=7)), place / "sibling")
    verify(place / "sibling", source=str(models(seed=7)), load=True)
    assert (place / "sibling" / "model.safetensors").read_bytes() != (place / "out" / "model.safetensors").read_bytes()
    with pytest.raises(VerificationError, match="not the source of the model"):
        verify(place / "sibling", source=str(models()))


@pytest.mark.parametrize("other", ["wider", "deeper", "untied", "llama"])
def test_an_operator_takes_sources_of_its_shape_only(
    other: str, fitted: tuple[Path, ConversionResult], models: Callable[..., Path], place: Path
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "wider": {"n_embd": 32},
        "deeper": {"n_layer": 3},
        "untied": {"tied": False},
        "llama": {"family": "llama"},
    }
    with pytest.raises(SourceError, match=r"has other sizes|another family"):
        apply_operator(
            fitted[0] / "out" / "ligo" / "operator.safetensors", str(models(**changes[other])), place / "out"
        )
    assert left_behind(place) == []


def test_apply_refuses_what_is_no_operator(models: Callable[..., Path], place: Path) -> None:
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        apply_operator(models() / "model.safetensors", str(models()), place / "out")
    with pytest.raises(SourceError, match="no such file"):
        apply_operator(place / "nothing", str(models()), place / "out")


# --- what is refused, and by whom -------------------------------------------------------------------------------------

Break = Callable[[Path, Path], None]


def config_set(**changes: object) -> Break:
    def change(source: Path, _: Path) -> None:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def truncate(source: Path, _: Path) -> None:
    path = source / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def overlap(source: Path, _: Path) -> None:
    path = source / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    names = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    first, second = header[names[0]]["data_offsets"], header[names[1]]["data_offsets"]
    header[names[1]]["data_offsets"] = [second[0] - 4, second[1] - 4]
    assert first[1] == second[0]
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def remove(*names: str) -> Break:
    def change(source: Path, _: Path) -> None:
        for name in names:
            (source / name).unlink()

    return change


def only_sentencepiece(source: Path, _: Path) -> None:
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")


def no_such_source(source: Path, _: Path) -> None:
    shutil.rmtree(source)


def nothing(_: Path, __: Path) -> None:
    pass


HIDDEN = {"n_embd": 24, "n_head": 3}
WITH_FIT: dict[str, object] = {"fit": fit_section()}
# what is wrong -> how it is broken, target, other sections, error, what it says
HEADERS: dict[str, tuple[Break, dict[str, object], dict[str, Any], type[LigoError], str]] = {
    "unknown model type": (
        config_set(model_type="rwkv"),
        HIDDEN,
        {},
        SourceError,
        r"one of \d+ types, which `ligo-convert families` lists",
    ),
    "misspelt model type": (
        config_set(model_type="gpt"),
        HIDDEN,
        {},
        SourceError,
        r"the tensor names are those of gpt2",
    ),
    "code in the config": (config_set(trust_remote_code=True), HIDDEN, {}, SourceError, "trust_remote_code"),
    "truncated weights": (truncate, HIDDEN, {}, SourceError, r"source/model\.safetensors"),
    "overlapping tensors": (overlap, HIDDEN, {}, SourceError, r"source/model\.safetensors.*overlap|overlap"),
    "config of another model": (config_set(n_layer=3), HIDDEN, {}, SourceError, r"h\.2\.ln_1"),
    "a layer too many": (config_set(n_layer=1), HIDDEN, {}, SourceError, r"no row claims transformer\.h\.1\."),
    "no source": (no_such_source, HIDDEN, {}, SourceError, "no such directory"),
    "no weights": (remove("model.safetensors"), HIDDEN, {}, SourceError, r"safetensors"),
    "no tokenizer": (remove("tokenizer.json"), HIDDEN, WITH_FIT, RecipeError, "text needs a tokenizer"),
    "sentencepiece alone": (only_sentencepiece, HIDDEN, WITH_FIT, MissingExtra, r"ligo-convert\[sentencepiece\]"),
    "no such text": (nothing, HIDDEN, {"fit": fit_section("none/*.txt")}, DataMissing, r"none/\*\.txt.*matches no"),
    "sequences too long": (
        nothing,
        HIDDEN,
        {"fit": fit_section(sequence_length=128)},
        RecipeError,
        r"recipe\.yaml:\d+:\d+: fit\.sequence_length.*\n.*64",
    ),
    "hub text without datasets": (
        nothing,
        HIDDEN,
        {"fit": fit_section(data={"hub": {"id": "org/text"}})},
        MissingExtra,
        r"ligo-convert\[datasets\]",
    ),
    "no training steps left": (
        nothing,
        HIDDEN,
        {"fit": fit_section(warmup_steps=6)},
        RecipeError,
        r"recipe\.yaml:\d+:\d+: fit\.warmup_steps",
    ),
    "unknown target key": (
        nothing,
        {"n_embed": 24},
        {},
        RecipeError,
        r"recipe\.yaml:8:7: n_embed.*did you mean 'n_embd'",
    ),
    "target smaller": (nothing, {"n_embd": 8}, {}, RecipeError, r"recipe\.yaml:\d+:\d+: .*smaller.*\n.*16\n.*8"),
    "heads that do not divide": (nothing, {"n_embd": 25}, {}, RecipeError, r"recipe\.yaml:\d+:\d+: .*do not fit"),
    "a size that is no number": (nothing, {"n_embd": "wide"}, {}, RecipeError, r"recipe\.yaml:\d+:\d+: .*n_embd"),
    "a negative size": (nothing, {"n_layer": -1}, {}, RecipeError, r"recipe\.yaml:\d+:\d+: "),
    "hyperclone at an uneven ratio": (
        nothing,
        HIDDEN,
        {"growth": {"width": "hyperclone", "depth": "copy"}},
        RecipeError,
        "hyperclone",
    ),
    "lemon with another activation": (
        nothing,
        {**HIDDEN, "activation_function": "relu"},
        {},
        RecipeError,
        "activation_function",
    ),
    "float weights that the config calls quantised": (
        config_set(quantization_config={"quant_method": "gptq", "bits": 4}),
        HIDDEN,
        {},
        SourceError,
        r"config\.json.*quantization_config \(gptq\)|quantization_config \(gptq\).*\n.*config\.json",
    ),
    "output in the working directory": (nothing, HIDDEN, {"output": {"dir": "."}}, RecipeError, "working directory"),
    "output inside the source": (nothing, HIDDEN, {"output": {"dir": "source/out"}}, RecipeError, "source"),
    "a config that the source has not": (
        nothing,
        HIDDEN,
        {"source": {"config": {"model_type": "gpt2", "n_embd": 17}}},
        RecipeError,
        r"recipe\.yaml:\d+:\d+: source\.config\.n_embd",
    ),
    "a parent that is a file": (nothing, HIDDEN, {"output": {"dir": "recipe.yaml/out"}}, MachineError, "recipe.yaml"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_plan_and_run_refuse_alike_and_leave_nothing(
    what: str, source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, target, sections, kind, text = HEADERS[what]
    if kind is MissingExtra:
        not_installed(monkeypatch, "datasets", "sentencepiece")
    change(source, place)
    recipe = recipe_of(place, "./source", target, **sections)
    before = snapshot(place)
    for do in (plan_recipe, convert):
        with pytest.raises(LigoError, match=text) as caught:
            do(recipe)
        assert type(caught.value) is kind
        assert "Traceback" not in str(caught.value)
        assert str(place) not in str(caught.value) or kind is MachineError
    assert snapshot(place) == before
    assert left_behind(place) == []


def test_kv_groups_that_do_not_divide(models: Callable[..., Path], place: Path) -> None:
    recipe = recipe_of(place, models("llama"), {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 4})
    for do in (plan_recipe, convert):
        with pytest.raises(
            RecipeError, match=r"recipe\.yaml:\d+:\d+: the target's sizes do not fit.*num_key_value_heads"
        ):
            do(recipe)


def nonfinite(source: Path, value: float, count: int = 3) -> None:
    path = source / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.1.mlp.c_fc.weight"][0, :count] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_source_with_nonfinite_values(value: float, source: Path, place: Path) -> None:
    nonfinite(source, value)
    plan_recipe(recipe_of(place, source, HIDDEN))
    with pytest.raises(SourceError, match=r"h\.1\.mlp\.c_fc\.weight: 3 of 1024 values are NaN or infinite") as caught:
        convert(recipe_of(place, source, HIDDEN))
    assert "allow_nonfinite" in str(caught.value)
    assert left_behind(place) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_values_may_be_allowed_and_are_recorded(value: float, source: Path, place: Path) -> None:
    nonfinite(source, value)
    outcome = run(place, source, HIDDEN, source={"allow_nonfinite": True})
    json.dumps(outcome.json(), allow_nan=False)
    statement = json.loads((place / "out" / "ligo" / "provenance.json").read_text())
    assert statement["predicate"]["buildDefinition"]["internalParameters"]["nonfiniteAllowed"] is True
    assert outcome.metrics["preservation"]["verdict"] is None
    assert outcome.metrics["preservation"]["unmeasured"] == "the source's logits are not finite"
    assert outcome.metrics["verification"]["finite"] is False
    assert verify(place / "out", source=str(source))["weights"]["finite"] is False
    assert "the source's logits are not finite" in (place / "out" / "README.md").read_text()


def test_a_dtype_too_narrow_for_the_values(source: Path, place: Path) -> None:
    path = source / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.wte.weight"] *= 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"transformer\.wte\.weight: \d+ of 7200 grown values") as caught:
        run(place, source, HIDDEN, output={"dtype": "float16"})
    assert "output.dtype" in str(caught.value)
    assert not (place / "out").exists()
    assert verify_fails_nowhere(run(place, source, HIDDEN, output={"dtype": "float32", "dir": "wide"}))


def verify_fails_nowhere(outcome: ConversionResult) -> bool:
    return bool(verify(outcome.out)["weights"]["finite"])


def test_a_tied_head_that_is_no_copy(source: Path, place: Path) -> None:
    path = source / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(SourceError, match="ties them"):
        run(place, source, HIDDEN)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    run(place, source, HIDDEN)
    assert "lm_head.weight" not in weights_of(place / "out")
    loads(place / "out")


def test_a_source_that_changes_while_it_is_converted(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source is written to after its weights have been read: nothing comes of it."""
    from ligo_convert.conversion import write as pipeline

    done = pipeline.write_model_files

    def change_then(*arguments: Any) -> None:
        flip(source / "model.safetensors")
        done(*arguments)

    monkeypatch.setattr(pipeline, "write_model_files", change_then)
    with pytest.raises(SourceChanged, match=r"model\.safetensors"):
        run(place, source, HIDDEN)
    assert not (place / "out").exists()


def test_memory_is_asked_for_before_anything_is_done(
    models: Callable[..., Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ligo_convert.conversion.plan, "physical_memory", lambda: 10**8)
    with pytest.raises(MachineError, match=r"(?s)more memory.*micro_batch_size"):
        run(place, models(), HIDDEN, fit=fit_section())
    assert left_behind(place) == []
    outcome = run(place, models(), HIDDEN)
    assert outcome.metrics["preservation"]["verdict"] is None, "growing alone streams; nothing is measured"


# --- verification -----------------------------------------------------------------------------------------------------


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def finished(fitted: tuple[Path, ConversionResult], tmp_path: Path) -> Path:
    return shutil.copytree(fitted[0] / "out", tmp_path / "finished")


@pytest.mark.parametrize("name", sorted(LAYOUT))
@pytest.mark.parametrize("at", [0, -2])
def test_a_flipped_bit_is_found(name: str, at: int, finished: Path) -> None:
    flip(finished / name, at)
    with pytest.raises(VerificationError, match="SHA256SUMS|README" if name.endswith("SUMS") else name) as caught:
        verify(finished)
    assert caught.value.exit_code == 7


def test_a_file_more_or_less_is_found(finished: Path) -> None:
    (finished / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(VerificationError, match=r"pytorch_model\.bin"):
        verify(finished)
    (finished / "pytorch_model.bin").unlink()
    (finished / "generation_config.json").unlink()
    with pytest.raises(VerificationError, match=r"generation_config\.json"):
        verify(finished)


@pytest.mark.parametrize("name", ["model.safetensors", "ligo/operator.safetensors"])
def test_deriving_again_finds_what_digests_cannot(name: str, finished: Path, models: Callable[..., Path]) -> None:
    content = (finished / name).read_bytes()
    header = parse_header(content, file_size=len(content), label=name)
    # A number of a matrix: an index would no longer be one.
    end = next(tensor.end for part, tensor in header.tensors.items() if "/depth/" in part or ".h." in part)
    flip(finished / name, end - 3)
    resign(finished, name)
    verify(finished)
    with pytest.raises(
        VerificationError, match=r"finished: .*the tensor differs from the result of source and operator"
    ):
        verify(finished, source=str(models()))


def test_on_another_processor_derived_tensors_agree_to_rounding(
    finished: Path, models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(finished / "model.safetensors", -4)  # the low byte of the last value
    resign(finished, "model.safetensors")
    monkeypatch.setattr("ligo_convert.outputs.verify.processor", lambda: "another")
    report = verify(finished, source=str(models()))
    assert report["derived"]["identical"] == report["derived"]["tensors"] - 1
    flip(finished / "model.safetensors", -1)  # its sign and exponent
    resign(finished, "model.safetensors")
    with pytest.raises(VerificationError, match="the tensor differs from the result of source and operator"):
        verify(finished, source=str(models()))


def test_verify_with_another_source(finished: Path, models: Callable[..., Path]) -> None:
    with pytest.raises(VerificationError, match="not the source of the model") as caught:
        verify(finished, source=str(models(seed=1)))
    assert "model.safetensors" in str(caught.value)


def test_verify_of_what_is_no_output(place: Path, models: Callable[..., Path]) -> None:
    (place / "file").write_text("x")
    for path in (place / "nothing", place / "file"):
        with pytest.raises(VerificationError, match="no such directory"):
            verify(path)
    with pytest.raises(VerificationError, match="SHA256SUMS"):
        verify(models())


# --- siblings ---------------------------------------------------------------------------------------------------------


def test_an_operator_scales_the_siblings_own_epsilon(models: Callable[..., Path], place: Path) -> None:
    recipe = place / "recipe.yaml"
    recipe.write_text(recipe_text(str(models()), HIDDEN, fit=fit_section()))
    fit_operator(load_recipe(recipe), place / "op.safetensors")
    shutil.copytree(models(), place / "sibling")
    config = json.loads((place / "sibling" / "config.json").read_text())
    (place / "sibling" / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-12}))
    apply_operator(place / "op.safetensors", str(place / "sibling"), place / "grown")
    grown = json.loads((place / "grown" / "config.json").read_text())
    assert grown["layer_norm_epsilon"] == pytest.approx(1e-12 * config["n_embd"] / grown["n_embd"], rel=1e-12)
    (place / "sibling" / "config.json").write_text(json.dumps({**config, "scale_attn_weights": False}))
    with pytest.raises(SourceError, match="computes a different function"):
        apply_operator(place / "op.safetensors", str(place / "sibling"), place / "other")


def test_an_activation_that_nobody_knows_is_the_recipes_fault(models: Callable[..., Path], place: Path) -> None:
    recipe = place / "recipe.yaml"
    target = {**HIDDEN, "activation_function": "foo"}
    recipe.write_text(recipe_text(str(models()), target, growth={"width": "zero"}))
    with pytest.raises(RecipeError, match="activation_function: not a value of a gpt2"):
        convert(load_recipe(recipe))
