"""Scan the installed transformers and timm: which of their classes grow, and what the others lack.

    python scripts/scan_libraries.py
    python scripts/scan_libraries.py --only llama --only vit_base_patch16_224

Input: the installed libraries; no network, no weights. Output: a record of every class in docs/reference/library-scan.json, and the
generated table in docs/reference/families.md. With `--only`, the records of all other types stay as they are.

Each class is built on the meta device with its default config. The names, shapes and config that the library would write to disk are
given to the same functions that read a source. A class *grows* if one row claims each tensor and every row is used.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.errors import SourceError
from ligo_convert.families.configs import flat_config
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.registry import FAMILIES, find_family
from ligo_convert.families.schema import Family

ROOT = Path(__file__).parent.parent
RECORD, PAGE = ROOT / "docs" / "reference" / "library-scan.json", ROOT / "docs" / "reference" / "families.md"
COMMAND = "python scripts/scan_libraries.py"
LIBRARIES = ("transformers", "timm")

# Kind of a class -> what it is called in the table.
KINDS = {
    "causal-lm": "causal language models",
    "decoder": "bodies of causal language models",
    "masked-lm": "masked language models",
    "encoder": "text encoders",
    "image-classification": "image classifiers of transformers",
    "image-encoder": "image encoders of transformers",
    "timm": "vision transformers of timm, by architecture",
    "sequence-to-sequence": "encoder-decoders and their bodies",
    "other": "other bodies: sound, video, several kinds of input",
}

# The kinds whose refusals the page lists.
LISTED = ("causal-lm", "masked-lm", "encoder", "image-classification", "timm")

# Modules of timm in which every block attends over tokens. All other modules are convolutional, mixers or partly convolutional.
TRANSFORMERS_OF_TIMM = frozenset(
    (
        *("beit", "cait", "coat", "convit", "crossvit", "davit", "deepseek_vit", "deit", "eva", "gcvit", "gemma4_vit"),
        *("hiera", "hieradet_sam2", "levit", "mvitv2", "naflexvit", "nest", "pit", "pvt_v2", "qwen3_vit"),
        *("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tnt", "twins", "vision_transformer"),
        *("vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam", "volo", "xcit"),
    )
)

# Type -> config keys without which its class cannot be built: the library's defaults leave them out.
NEEDED: Mapping[str, Mapping[str, object]] = {
    # The default has a projection behind the embeddings, which the table has not.
    "electra": {"embedding_size": 256},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True},
}

# Least share of a class's tensor names that a family must have to be called near.
ALIKE = 0.5

# Names that are shown of those that a table lacks.
SHOWN = 3

# Most names by which a class may differ from a family to be listed by itself.
NEAR = 8


@dataclass(frozen=True, kw_only=True, order=True)
class Subject:
    """A class of a library with the config it is built from.

    Attributes:
        kind: a key of `KINDS`.
        type: the `model_type` of transformers, or the architecture of timm.
        name: the name of the class; for timm it is known once it is built.
    """

    kind: str
    type: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the scan found for one class.

    Attributes:
        kind, type, name: as in `Subject`.
        verdict: `grows`, `refused` or `not tried`.
        family: the family that it grows by, or the nearest one by tensor names; "" for none.
        why: the reason of a refusal by a family with this `model_type`, or why the class was not tried.
        lacks: tensor names that the nearest family's table lacks, `*` for the number of a layer.
        unused: tensor names that the nearest family's table has besides.
        differs: how many names `lacks` and `unused` stand for: each shows the first few, and none where the layout is another.
        fits: whether the nearest family would claim every tensor, were its `model_type` in the config.
        experts: whether the class has a mixture of experts.
    """

    kind: str
    type: str
    name: str
    verdict: str
    family: str = ""
    why: str = ""
    lacks: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    differs: int = 0
    fits: bool = False
    experts: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.type, self.name

    def json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value}


class NotBuilt(Exception):
    """A class that cannot be built, or whose tensors on disk cannot be told."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model as its library would write it to disk.

    Attributes:
        config: config.json.
        tensors: name on disk -> spec.
        name: the class.
        prefix: leading part of the names of its body.
    """

    config: dict[str, object]
    tensors: dict[str, TensorSpec]
    name: str
    prefix: str = ""


# --- what there is ----------------------------------------------------------------------------------------------------


def subjects() -> list[Subject]:
    """Every class of the kinds in `KINDS`, in the order of the libraries' own lists."""
    import timm
    from timm.models._registry import _model_to_module

    found = [
        Subject(kind=kind, type=model_type, name=name)
        for kind, mapping in _mappings().items()
        for model_type, names in mapping.items()
        for name in ([names] if isinstance(names, str) else names)
    ]
    found += [
        Subject(kind="timm", type=name) for name in timm.list_models() if _model_to_module[name] in TRANSFORMERS_OF_TIMM
    ]
    return list(dict.fromkeys(found))


def _mappings() -> dict[str, dict[str, Any]]:
    """Kind -> type -> class or classes of transformers. A body is of the kind of the first head that its type has."""
    from transformers.models.auto import modeling_auto as auto

    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    images, pairs = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    kinds: tuple[tuple[str, Collection[str]], ...] = (
        ("sequence-to-sequence", pairs),
        ("encoder", {*masked, *auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES}),
        ("decoder", causal),
        ("image-encoder", {*images, *auto.MODEL_FOR_IMAGE_MAPPING_NAMES}),
        ("other", auto.MODEL_MAPPING_NAMES),
    )
    found: dict[str, dict[str, Any]] = {
        "causal-lm": dict(causal),
        "masked-lm": dict(masked),
        "image-classification": dict(images),
        "sequence-to-sequence": {name: _both(pairs[name], auto.MODEL_MAPPING_NAMES.get(name)) for name in pairs},
    }
    for name, classes in auto.MODEL_MAPPING_NAMES.items():
        kind = next(kind for kind, types in kinds if name in types)
        if kind != "sequence-to-sequence":
            found.setdefault(kind, {})[name] = classes
    return found


def _both(*classes: Any) -> list[str]:
    """The names of classes, each given as a name, several names or None."""
    return [name for given in classes if given is not None for name in ([given] if isinstance(given, str) else given)]


def known_subjects(found: Iterable[Subject]) -> list[Subject]:
    """The subjects that a family may claim: those of a `model_type` or an architecture that a family has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    # A type may be another name for the config class of a family, which then writes that family's `model_type`.
    configs = {CONFIG_MAPPING_NAMES.get(family.model_type) for family in FAMILIES.values()} - {None}
    architectures = {name for family in FAMILIES.values() for name in family.architectures}
    return [
        subject
        for subject in found
        if (
            subject.type in architectures
            if subject.kind == "timm"
            else CONFIG_MAPPING_NAMES.get(subject.type) in configs
        )
    ]


def sampled(known: Iterable[Subject]) -> list[Subject]:
    """The subjects of transformers, and of timm's, which are many and differ in their sizes, one of each family."""
    firsts = {next(iter(family.architectures), "") for family in FAMILIES.values()}
    return [subject for subject in known if subject.kind != "timm" or subject.type in firsts]


# --- what a library writes --------------------------------------------------------------------------------------------


def build(subject: Subject) -> Built:
    """Build a class on the meta device. Raises NotBuilt."""
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            return _timm_model(subject) if subject.kind == "timm" else _transformers_model(subject)
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines() or [""]
        raise NotBuilt(f"{type(error).__name__}: {lines[0]}"[:160].rstrip()) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the libraries log of unusual configs: the record has what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _transformers_model(subject: Subject) -> Built:
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(subject.type, **NEEDED.get(subject.type, {}))
    with torch.device("meta"), _shapes_alone():
        model = getattr(transformers, subject.name)(config)
    model.config.architectures = [subject.name]
    prefix = model.base_model_prefix
    return Built(
        config=json.loads(model.config.to_json_string()),
        tensors={name: _spec(name, tensor) for name, tensor in disk_tensors(model).items()},
        name=subject.name,
        prefix=f"{prefix}." if prefix else "",
    )


def disk_tensors(model: Any) -> dict[str, Any]:
    """Name on disk -> tensor, as `save_pretrained` of transformers writes a model.

    The library renames, splits and merges tensors when it loads a checkpoint, and undoes that when it saves one. Both work on tensors
    without data. `tests/families/test_library_scan.py` compares this with files that the library has written.
    """
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    ignored = set(model._keys_to_ignore_on_save or ())
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    return dict(revert_weight_conversion(model, remove_tied_weights_from_state_dict(tensors, model)))


def _timm_model(subject: Subject) -> Built:
    import timm
    import torch
    from timm.models._hub import save_config_for_hf

    with torch.device("meta"), _shapes_alone():
        model = timm.create_model(subject.type)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        save_config_for_hf(model, path)
        config = json.loads(path.read_text())
    tensors = {name: _spec(name, tensor) for name, tensor in model.state_dict().items()}
    return Built(config=config, tensors=tensors, name=type(model).__name__)


@contextlib.contextmanager
def _shapes_alone() -> Iterator[None]:
    """Pass over initialisers: on the meta device they take most of the time and change nothing."""
    import torch
    from torch.overrides import TorchFunctionMode

    drawn = {value for name, value in vars(torch.nn.init).items() if name.endswith("_") and callable(value)}
    drawn |= {torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.erfinv_}

    class ShapesAlone(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: Sequence[Any] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            if func in drawn:
                return args[0] if args else (kwargs or {})["tensor"]
            return func(*args, **(kwargs or {}))

    with ShapesAlone():
        yield


def _spec(name: str, tensor: Any) -> TensorSpec:
    import torch

    from ligo_convert.checkpoints.torch_io import TORCH_DTYPES

    others = {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
    dtypes = {**others, **{dtype: known for known, dtype in TORCH_DTYPES.items()}}
    return TensorSpec(name=name, dtype=dtypes[tensor.dtype], shape=tuple(tensor.shape))


# --- what our tables say of it ----------------------------------------------------------------------------------------


def scan(found: Iterable[Subject], *, progress: Callable[[Subject], None] = lambda subject: None) -> list[Record]:
    """Build each class and ask the families."""
    records = []
    for subject in found:
        progress(subject)
        records.append(judge(subject))
    return records


def judge(subject: Subject) -> Record:
    """Build one class and ask the families."""
    shared = {"kind": subject.kind, "type": subject.type}
    try:
        built = build(subject)
    except NotBuilt as error:
        return Record(**shared, name=subject.name, verdict="not tried", why=str(error))
    shared["name"] = built.name
    experts = any(re.search(r"expert|moe\b", name) for name in built.tensors)
    try:
        config = flat_config(built.config)
        family = find_family(config, where="config.json")
    except SourceError as error:
        if built.config.get("model_type") in {family.model_type for family in FAMILIES.values()}:
            return Record(**shared, verdict="refused", why=error.what)
        return Record(**shared, verdict="refused", experts=experts, **_nearest(built, subject))
    try:
        claimed = claim_tensors(family, config, built.tensors, label=subject.type)
    except SourceError as error:
        return Record(**shared, verdict="refused", family=family.name, why=error.what, experts=experts)
    if claimed.left_out:
        why = f"the table would leave out {claimed.left_out[0]}"
        return Record(**shared, verdict="refused", family=family.name, why=why)
    if family.library == "transformers" and claimed.family.architecture != built.name:
        why = f"the table has no such class; its tensors are those of {claimed.family.architecture}"
        return Record(**shared, verdict="refused", family=family.name, why=why)
    return Record(**shared, verdict="grows", family=family.name)


def _nearest(built: Built, subject: Subject) -> dict[str, Any]:
    """The family whose names differ least from those of a class, and by what; empty if none has half of the names."""
    library = "timm" if subject.kind == "timm" else "transformers"
    names = {_numbered(name) for name in built.tensors}
    best: tuple[tuple[int, int], Family, list[str], list[str]] | None = None
    for family in FAMILIES.values():
        if family.library != library:
            continue
        rows, needed = _names_of(family.name)
        # A family's own prefix may stand for that of the class.
        spelled = {name: (name, name.removeprefix(built.prefix)) for name in names}
        found = {
            name: next(filter(None, (family.canonical(one, rows) for one in both)), None)
            for name, both in spelled.items()
        }
        lacks = sorted(
            name for name, both in spelled.items() if found[name] is None and not any(map(family.is_ignored, both))
        )
        if len(lacks) > (1 - ALIKE) * len(names):
            continue
        unused = sorted(needed - set(found.values()))
        rank = len(lacks) + len(unused), len(rows)
        if best is None or rank < best[0]:
            best = rank, family, lacks, unused
    if best is None:
        return {}
    (differs, _), family, lacks, unused = best
    if differs > NEAR:
        lacks, unused = [], []
    return {
        "family": family.name,
        "differs": differs,
        "lacks": tuple(map(_starred, lacks[:SHOWN])),
        "unused": tuple(map(_starred, unused[:SHOWN])),
        "fits": differs == 0 and library == "transformers" and _fits(family, built),
    }


def _fits(family: Family, built: Built) -> bool:
    """Whether a family claims every tensor of a class under its own `model_type` and prefix."""
    config = {**built.config, "model_type": family.model_type, "architectures": []}
    bodies = {name: name.removeprefix(built.prefix) for name in built.tensors}
    names = {name: name if name == body else family.optional_prefix + body for name, body in bodies.items()}
    tensors = {
        names[name]: TensorSpec(name=names[name], dtype=spec.dtype, shape=spec.shape)
        for name, spec in built.tensors.items()
    }
    try:
        return not claim_tensors(family, config, tensors, label="").left_out
    except SourceError:
        return False


@cache
def _names_of(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """The tensor names of a family's first layer: all of them, and those that each of its models has."""
    rows = {row.name(0 if row.depth else None): row for row in FAMILIES[name].table}
    needed = {known for known, row in rows.items() if not (row.layout.conditions or row.layout.part)}
    return frozenset(rows), frozenset(needed)


def _numbered(name: str) -> str:
    """A tensor name with every number of a layer set to 0."""
    return re.sub(r"(?<=\.)[0-9]+(?=\.)", "0", name)


def _starred(name: str) -> str:
    return re.sub(r"(?<=\.)0(?=\.)", "*", name)


# --- the record and the page ------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def read_record(path: Path = RECORD) -> tuple[dict[str, str], list[Record]]:
    """The versions of the libraries, and what was found."""
    data = json.loads(path.read_text(encoding="utf-8"))
    lists = ("lacks", "unused")
    records = [
        Record(**{key: tuple(value) if key in lists else value for key, value in entry.items()})
        for entry in data["classes"]
    ]
    return data["libraries"], records


def write_record(records: Sequence[Record], path: Path = RECORD) -> None:
    """Write one line for each class, so that a change shows which one it concerns."""
    order = list(KINDS)
    ordered = sorted(records, key=lambda record: (order.index(record.kind), record.type.lower(), record.name))
    lines = ",\n".join(f"    {json.dumps(record.json())}" for record in ordered)
    path.write_text(
        f'{{\n  "libraries": {json.dumps(versions())},\n  "classes": [\n{lines}\n  ]\n}}\n', encoding="utf-8"
    )


def growing(records: Iterable[Record]) -> set[tuple[str, str, str]]:
    return {record.key for record in records if record.verdict == "grows"}


def differences(found: Iterable[Record], recorded: Iterable[Record], *, gained: bool) -> list[str]:
    """What no longer grows, and what grows and is not recorded.

    Args:
        found: a scan of all classes that a family may claim.
        gained: whether to count what grows and is not recorded.
    """
    found = list(found)
    now, then = growing(found), growing(recorded)
    why = {record.key: record.why for record in found}
    lost = [
        f"{' '.join(key)}: grew, and does not: {why.get(key) or 'no family is for it'}" for key in sorted(then - now)
    ]
    more = [f"{' '.join(key)}: grows, and is not recorded: {COMMAND}" for key in sorted(now - then)]
    return [*lost, *(more if gained else [])]


def page_block() -> str:
    """The generated part of docs/reference/families.md, from the record."""
    libraries, records = read_record()
    named = " and ".join(f"{name} {libraries[name]}" for name in LIBRARIES)
    parts = [
        f"Scanned: {named}.\n",
        _counts(records),
        "Refused, and what the nearest family's table lacks or has besides:\n",
    ]
    parts.append(_refusals(records))
    return "\n".join(parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _counts(records: Sequence[Record]) -> str:
    rows = []
    for kind, title in KINDS.items():
        counts = Counter(record.verdict for record in records if record.kind == kind)
        numbers = (counts["grows"], counts["refused"], counts["not tried"])
        rows.append((title, str(sum(numbers)), *map(str, numbers)))
    return _table(("kind", "classes", "grow", "refused", "not tried"), rows)


def _refusals(records: Sequence[Record]) -> str:
    """One line for each reason; the types that share it stand together."""
    groups: dict[tuple[int, str, str], list[str]] = {}
    for kind in LISTED:
        for record in records:
            if record.kind == kind and record.verdict != "grows":
                # The architectures of timm are many, and their classes few.
                shown = record.name if kind == "timm" else record.type
                groups.setdefault((LISTED.index(kind), *_reason(record)), []).append(shown)
    rows = [
        (KINDS[LISTED[kind]], nearest, why, _counted(types) if LISTED[kind] == "timm" else code(dict.fromkeys(types)))
        for (kind, nearest, why), types in sorted(groups.items())
    ]
    return _table(("kind", "nearest", "reason", "types; for timm classes, with the number of architectures"), rows)


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}` {count}" for name, count in sorted(Counter(names).items()))


def _reason(record: Record) -> tuple[str, str]:
    """The nearest family and the reason in a few words; types with the same ones are listed together."""
    family = f"`{record.family}`" if record.family else ""
    if record.verdict == "not tried":
        return "", "not tried: cannot be built with its default config"
    if record.why:
        return family, re.sub(r"\b\d+ tensor\(s\)", "tensors", record.why)
    if record.experts:
        return "", "mixture of experts"
    if not record.family or record.differs > NEAR:
        return "", "another layout"
    if not record.differs:
        return family, "the same names and shapes" if record.fits else "the same names"
    parts = [
        f"lacks {code(record.lacks)}" if record.lacks else "",
        f"has {code(record.unused)}" if record.unused else "",
    ]
    shown = len(record.lacks) + len(record.unused)
    more = f" and {record.differs - shown} more" if record.differs > shown else ""
    return family, "; ".join(filter(None, parts)) + more


def code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_BLOCK = re.compile(r"(<!-- generated: library scan -->\n).*?(<!-- end -->)", re.DOTALL)


def write_page() -> None:
    text, block = PAGE.read_text(encoding="utf-8"), page_block()
    PAGE.write_text(_BLOCK.sub(lambda match: match[1] + block + match[2], text), encoding="utf-8")


@click.command()
@click.option("--only", multiple=True, help="A model_type, or an architecture of timm; may be repeated.")
def main(only: tuple[str, ...]) -> None:
    """Scan the libraries and write the record and the page."""
    found = subjects()
    kept: list[Record] = []
    if only:
        unknown = set(only) - {subject.type for subject in found}
        if unknown:
            raise click.ClickException(f"no such type: {', '.join(sorted(unknown))}")
        kept = [record for record in read_record()[1] if record.type not in only]
        found = [subject for subject in found if subject.type in only]
    with click.progressbar(found, file=sys.stderr, item_show_func=_shown) as shown:
        records = scan(shown)
    write_record([*kept, *records])
    write_page()
    for kind in KINDS:
        counts = Counter(record.verdict for record in (*kept, *records) if record.kind == kind)
        click.echo(f"{kind}: {counts['grows']} of {counts.total()} grow, {counts['not tried']} not tried")


def _shown(subject: Subject | None) -> str:
    return subject.type if subject else ""


if __name__ == "__main__":
    main()
