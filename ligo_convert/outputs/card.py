"""The model card: README.md of an output directory, with the Hub's metadata in front.

What comes in: the `Record` of a run and the sizes of the files beside the card. What goes out: Markdown in UTF-8, the same for the same
record; times stand in one line of the provenance alone. Names, config values and reasons come from files that others wrote: they are
quoted so that nothing in them is markup, a link or a control character.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import WITHOUT_LOSS, Family
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.io.yaml_writer import dump_yaml
from ligo_convert.outputs.card_training import family_of_record, has_tokenizer, training_advice
from ligo_convert.outputs.markdown import ARXIV, code, prose, table
from ligo_convert.outputs.privacy import check_nothing_private
from ligo_convert.outputs.provenance import Record

PIPELINES = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "encoder": "feature-extraction",
    "sequence-classification": "text-classification",
    "image-classification": "image-classification",
}

_AGREEMENT = (
    "Disagreement with the source: of hidden states, relative to their size, and of cosines between sequences (0: none)",
    "relative",
)

# What the loss of each task is a mean of, and over what.
LOSSES = {
    "causal-lm": ("Mean next-token loss", "nats a token"),
    "masked-lm": ("Mean loss on masked tokens", "nats a masked token"),
    "encoder": _AGREEMENT,
    "sequence-classification": _AGREEMENT,
    "image-classification": ("Mean loss of the class", "nats an image"),
}

FIGURE = "ligo/fit.png"

_SOURCE_FOLDER = "ligo/source/"

_LIGO = """@inproceedings{wang2023learning,
  title     = {Learning to Grow Pretrained Models for Efficient Transformer Training},
  author    = {Wang, Peihao and Panda, Rameswar and Torroba Hennigen, Lucas and Greengard, Philip and Karlinsky, Leonid and
               Feris, Rogerio and Cox, David Daniel and Wang, Zhangyang and Kim, Yoon},
  booktitle = {International Conference on Learning Representations},
  year      = {2023},
  url       = {https://arxiv.org/abs/2303.00980}
}"""


def _in_words(record: Record, verdict: str) -> str:
    """What a verdict says of the start: of logits, or, of a model without a head or with a new one, of its last hidden states."""
    if verdict == "lossy":
        return "does not preserve the function of the source"
    if _compares_states(record):
        head = "; its head is new, and drawn at random" if any("(new head)" in name for name in record.drawn) else ""
        if verdict == "exact":
            return f"preserves what the body of the source computes: the last hidden states, to the rounding of the arithmetic{head}"
        return f"preserves the last hidden states of the source within a hundredth of their mean square{head}"
    if verdict == "exact":
        return "preserves the function of the source: every logit is the source's, to the rounding of the arithmetic"
    if family_of_record(record).task in WITHOUT_LOSS:
        return "preserves the logits of the source within a hundredth of their mean square"
    return f"preserves the source's loss within 0.01 {LOSSES[family_of_record(record).task][1]}, but not every logit"


def _compares_states(record: Record) -> bool:
    compared = record.metrics["preservation"].get("compared")
    if compared is not None:
        return bool(compared == "hidden states")
    return family_of_record(record).task == "encoder" or any("(new head)" in name for name in record.drawn)


def card(record: Record, *, files: Mapping[str, int], figure: bool) -> str:
    """README.md of an output directory.

    Args:
        files: the files beside the card: name -> bytes. figure: whether the picture of the fit is one of them.

    Raises:
        LigoError: something private would stand in it.
    """
    sections = (
        _opening(record),
        _sizes(record),
        _method(record),
        _preservation(record),
        _losses(record, figure=figure),
        _loading(record, files),
        training_advice(record, files),
        _limits(record),
        _provenance(record, files),
        _license(record),
        _citations(record),
    )
    text = _front_matter(record) + "\n" + "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines) + "\n"
    check_nothing_private(text, where="README.md", names_in=record.strings(), public=record.hub_ids)
    return text


# --- metadata ---------------------------------------------------------------------------------------------------------


def _front_matter(record: Record) -> str:
    family = family_of_record(record)
    data: dict[str, object] = {"library_name": family.library, "pipeline_tag": PIPELINES[family.task]}
    if record.source["license"] is not None:
        data["license"] = str(record.source["license"]).lower()
    dataset = _dataset(record)
    if dataset is not None:
        data["datasets"] = [dataset]
    data["tags"] = ["ligo", "model-growth", family.model_type]
    text = dump_yaml(data)
    if record.hub_id is not None:
        relation = dump_yaml({"base_model": record.hub_id, "base_model_relation": "finetune"})
        # The Hub guesses a relation where none is stated, and knows none that means "grown".
        text += "# The Hub has no relation that means `grown`; of those it has, this is the nearest.\n" + relation
    return f"---\n{text}---\n"


def _dataset(record: Record) -> str | None:
    data = (record.recipe.get("fit") or {}).get("data") or {}
    found = (data.get("hub") or {}).get("id")
    return None if found is None else str(found)


# --- what it is -------------------------------------------------------------------------------------------------------


def _source(record: Record) -> str:
    """The source as a reader can find it."""
    if record.hub_id is not None:
        name = prose(record.hub_id)
        commit = str(record.source["revision"])
        return f"[{name}](https://huggingface.co/{record.hub_id}) at commit {code(commit[:12])}"
    if record.source["pretrained_here"]:
        trained = record.metrics.get("pretrain")
        how = f" ({trained['steps']:,} steps, {trained['tokens']:,} tokens)" if trained else ""
        return f"a small {FAMILIES[record.family].model_type} that was trained for it first{how}"
    return f"{code(record.source_name)}, a checkpoint that is not on the Hub"


def _opening(record: Record) -> Iterator[str]:
    parameters = record.metrics["parameters"]
    name = record.source_name.rpartition("/")[2]
    title = "A model grown from one trained for it" if record.source["pretrained_here"] else f"{prose(name)}, grown"
    drawn = ", but for those drawn at random" if record.drawn else ""
    ratio = parameters["target"] / parameters["source"]
    yield f"# {title}"
    yield ""
    yield (
        f"A {FAMILIES[record.family].model_type} model of {parameters['target']:,} parameters, grown from {_source(record)} "
        f"({parameters['source']:,} parameters; {ratio:.2f} times as many now) with "
        f"[LiGO](https://arxiv.org/abs/2303.00980), learned linear growth. Every weight is a linear function of the source's{drawn}."
    )
    yield ""
    yield "**A grown model is a start for training, not a finished model.** It knows what its source knew, in a larger body."


def _sizes(record: Record) -> Iterator[str]:
    parameters = record.metrics["parameters"]
    yield "## Sizes"
    yield ""
    rows = [("parameters", f"{parameters['source']:,}", f"{parameters['target']:,}")]
    for key, sides in record.config_changes().items():
        old, new = (code(sides[side]) if side in sides else "not set" for side in ("source", "target"))
        rows.append((code(key), old, new))
    yield from table(("", "source", "this model"), rows)


def _method(record: Record) -> Iterator[str]:
    growth, operator, fit = record.recipe.get("growth") or {}, record.operator, record.metrics["fit"]
    yield "## Method"
    yield ""
    for axis, known in (("width", WIDTHS), ("depth", DEPTHS)):
        if growth.get(axis) in known:
            yield f"- {axis}: {code(growth[axis])}: {known[growth[axis]].summary}"
    for start in operator["starts"]:
        yield f"- {code(start)}"
    count = operator["parameters"]
    tie = ", read maps tied to write maps as the paper prints them" if operator["tie"] else ""
    size = f"{count['width']:,} coefficients of width, {count['depth']:,} of depth"
    yield f"- the operator: width maps {_KEYINGS[operator['keying']]}{tie}; {size}"
    if "apply" in record.recipe:
        yield "- the operator was made by an earlier run and applied to this source"
    elif fit is None:
        yield "- nothing was learned: this is the starting operator's result"
    elif not fit["best_step"]:
        yield f"- {fit['steps']:,} steps of learning gave nothing better on held-out data: this is the starting operator's result"
    else:
        best = f"step {fit['best_step']:,} was the best on held-out data and is the one applied"
        yield f"- the operator was learned for {fit['steps']:,} steps; {best}"
    for name in record.drawn:
        yield f"- drawn at random, as the library initialises: {prose(name)}"
    if record.nonfinite_allowed:
        yield "- **NaN and infinite values were let through**, as the recipe asked (`source.allow_nonfinite`)"


_KEYINGS = {
    "source": "by source layer, as in the paper",
    "target": "by target layer, as in the paper's code",
    "shared": "shared by all layers",
}


# --- figures ----------------------------------------------------------------------------------------------------------


def _preservation(record: Record) -> Iterator[str]:
    found, fit = record.metrics["preservation"], record.metrics["fit"]
    verdict, planned = found.get("verdict"), found.get("planned")
    yield "## What growth kept"
    yield ""
    if verdict is None and planned is None:
        yield "How far the function of the source is preserved was not measured."
        return
    if verdict is None:
        yield f"**{planned.capitalize()}**, by construction: the start {_in_words(record, planned)}. No model was run to measure it."
    else:
        yield f"**{verdict.capitalize()}**: the start {_in_words(record, verdict)}, measured on {_measured_on(found)} in float32 or wider."
    if fit is not None and fit["best_step"]:
        yield ""
        yield "This is the certificate of the start. The operator was then learned, and the weights here are the learned one's."
    reasons = [f"- {prose(reason)}" for reason in found.get("reasons") or ()]
    if reasons:
        yield ""
        yield from reasons
    if verdict is None:
        return
    yield ""
    what = "hidden state" if _compares_states(record) else "logit"
    rows = [
        (f"largest difference of a {what}", number(found["max_logit_difference"])),
        (f"mean difference of a {what}", number(found.get("mean_logit_difference"))),
        (f"largest {what} of the source", number(found.get("logit_scale"))),
        (
            f"difference of the loss, {LOSSES[family_of_record(record).task][1]}",
            number(found["loss_difference"], signed=True),
        ),
    ]
    yield from table(("start against source", ""), [row for row in rows if row[1]])
    if found.get("departs_at") is not None:
        yield ""
        yield f"Hidden states depart from the source's at layer {found['departs_at']} (counted from 0)."
    rounding = found.get("rounding")
    if rounding:
        yield ""
        yield (
            f"Storing the weights as {code(rounding['dtype'])} moves {what}s by at most {number(rounding['max_logit_difference'])} "
            f"{_rounded_loss(record, rounding['loss_difference'])}; the verdict is about the map, before that."
        )


def _rounded_loss(record: Record, difference: float | None) -> str:
    if difference is None:
        return "in all"
    return f"and the loss by {number(difference, signed=True)} {LOSSES[family_of_record(record).task][1]}"


def _losses(record: Record, *, figure: bool) -> Iterator[str]:
    loss = record.metrics["loss"]
    names = {
        "source": "source",
        "random_target": "a model of this size, drawn at random",
        "initial": "start" if loss["fitted"] is not None else "start: this model",
        "fitted": "fitted: this model",
    }
    task = family_of_record(record).task
    perplexity, accuracy = task in ("causal-lm", "masked-lm"), record.metrics["accuracy"]
    judged = _known(accuracy, "initial")
    rows = [
        (
            text,
            _loss(loss[name]),
            *((number(_perplexity(loss[name])),) if perplexity else ()),
            *((_share(accuracy.get(name)),) if judged else ()),
        )
        for name, text in names.items()
        if _known(loss, name)
    ]
    costs = list(_costs(record))
    if not rows and not costs and not figure:
        return
    yield "## Loss and cost"
    yield ""
    if rows:
        what, per = LOSSES[task]
        yield f"{what} on a held-out slice{_slice(record)}, which was used neither to learn nor to choose."
        yield ""
        columns = (*(("perplexity",) if perplexity else ()), *(("accuracy",) if judged else ()))
        yield from table(("model", f"loss, {per}", *columns), rows)
        yield ""
    if figure:
        yield f"![Loss while the operator was learned, step by step]({FIGURE})"
        yield ""
    yield from costs


def _measured_on(found: Mapping[str, Any]) -> str:
    unit = "images" if found.get("images") else "tokens"
    return f"{found[unit]:,} {unit}"


def _slice(record: Record) -> str:
    """How large the held-out slice is: ` of 16,384 tokens`."""
    for unit in ("tokens", "images"):
        found = ((record.data or {}).get(unit) or {}).get("test")
        if found:
            return f" of {found:,} {unit}"
    return ""


def _costs(record: Record) -> Iterator[str]:
    fit, flops = record.metrics["fit"], record.metrics["flops"]
    if fit is not None:
        yield f"- learning: {fit['steps']:,} steps, seed {fit['seed']}, {code(fit['precision'])}"
    if flops.get("fit"):
        yield f"- FLOPs of learning the operator: {number(float(flops['fit']))}"
    if flops.get("target_step"):
        yield f"- FLOPs of one training step of this model at the same batch: {number(float(flops['target_step']))}"


def _known(figures: Mapping[str, Any], name: str) -> bool:
    return figures.get(name) is not None


def _loss(value: float) -> str:
    # Starts differ in the third decimal: losses are shown to the fourth.
    return f"{value:.4f}" if math.isfinite(value) else number(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def number(value: float | None, *, signed: bool = False) -> str:
    """A figure at four digits; empty for None.

    >>> number(3.14159), number(1.2e-06), number(57021.3), number(123456789.0), number(float("nan"))
    ('3.142', '1.2e-06', '57,021', '1.235e+08', 'not a number')
    """
    if value is None:
        return ""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    sign = "+" if signed else ""
    return f"{value:{sign},.0f}" if 1000 <= abs(value) < 1e6 else f"{value:{sign}.4g}"


# --- how to use it ----------------------------------------------------------------------------------------------------


def _loading(record: Record, files: Collection[str]) -> Iterator[str]:
    family = family_of_record(record)
    yield "## How to load it"
    yield ""
    yield "```python"
    yield from _LOADING[family.library](family, tokenizer=has_tokenizer(files))
    yield "```"


def _load_transformers(family: Family, *, tokenizer: bool) -> Iterator[str]:
    options = "".join(f", {name}={value!r}" for name, value in family.chosen.options.items())
    yield f"from transformers import {'AutoTokenizer, ' if tokenizer else ''}{family.auto_class}"
    yield ""
    yield f'model = {family.auto_class}.from_pretrained("."{options})  # this directory, or the name of its repository'
    if tokenizer:
        yield 'tokenizer = AutoTokenizer.from_pretrained(".")'


def _load_timm(family: Family, *, tokenizer: bool) -> Iterator[str]:
    yield "import timm"
    yield ""
    yield 'model = timm.create_model("local-dir:.", pretrained=True)  # this directory; "hf-hub:NAME" for its repository'


_LOADING = {"transformers": _load_transformers, "timm": _load_timm}


def _limits(record: Record) -> Iterator[str]:
    verdict = record.metrics["preservation"].get("verdict")
    yield "## Limits"
    yield ""
    yield "- Growth adds room, not knowledge: without training it is at best about as good as its source."
    yield "- What the source does wrong, its biases included, this model does too. It was not evaluated on any benchmark here."
    if verdict == "lossy" or verdict is None:
        yield "- Outputs may differ from the source's at every token; look at the figures above before use."
    if verdict is not None and record.data is None:
        yield "- Preservation was measured on random inputs, for want of data: how far the functions agree, not how well either does."
    yield "- Figures hold for the slice they were measured on, and differ in the last digits between kinds of processors."


# --- where it is from -------------------------------------------------------------------------------------------------


def _provenance(record: Record, files: Mapping[str, int]) -> Iterator[str]:
    own = any(name.startswith(_SOURCE_FOLDER) for name in files)
    source = record.hub_id or (_SOURCE_FOLDER.rstrip("/") if own else "SOURCE")
    seconds = record.metrics["seconds"]
    took = ", ".join(f"{stage} {number(float(value))} s" for stage, value in seconds.items())
    memory = f"; {record.metrics['peak_rss_bytes'] / 1e9:.2f} GB of memory at the peak"
    yield "## Provenance"
    yield ""
    yield "Every file is listed with its SHA-256 in `ligo/SHA256SUMS`; `ligo/provenance.json` says what they were made of."
    yield "Both are written by the program itself and not signed."
    yield ""
    yield "```sh"
    yield "# every byte is the one that was written"
    yield "sha256sum -c ligo/SHA256SUMS"
    yield "# and every tensor is what its source and the operator give"
    yield f"ligo-convert verify . --load --source {source}"
    yield "```"
    yield ""
    rows = [("recipe", code(record.recipe_digest)), ("operator", code(record.operator["digest"]))]
    if record.data is not None:
        rows.append(("data", code(record.data["digest"])))
    rows += [(f"source, {code(name)}", code(digest)) for name, digest in sorted(record.source["files"].items())]
    yield from table(("", "SHA-256"), rows)
    yield ""
    yield from table(("file", "bytes"), [(code(name), f"{size:,}") for name, size in sorted(files.items())])
    yield ""
    yield (
        "Versions: "
        + ", ".join(f"{prose(name)} {prose(version)}" for name, version in sorted(record.versions.items()))
        + "."
    )
    yield f"Made {record.finished} ({took}{memory})."


def _license(record: Record) -> Iterator[str]:
    yield _LICENSE
    yield ""
    stated = record.source["license"]
    if stated is not None:
        yield f"{code(stated)}, inherited from the source: these weights derive from its weights, and its terms hold."
    elif record.source["pretrained_here"]:
        yield "No licence was stated. The source was trained for this model; whoever publishes it states one."
    else:
        yield "The source states no licence, and none is given here. Weights derived from it are under its terms; ask its authors."


_LICENSE = "## Licence"

_STATED = re.compile(r"(?m)^license: .*\n")


def under_license(text: str, license: str) -> str:
    """A card of `card` with the licence that its publisher states, in the metadata and in the text.

    Args:
        license: an identifier in lower case.

    >>> print(under_license("---\\ntags: [a]\\n---\\n# M\\n\\n## Licence\\n\\nNone.\\n\\n## Citation\\n", "mit"))
    ---
    license: mit
    tags: [a]
    ---
    # M
    <BLANKLINE>
    ## Licence
    <BLANKLINE>
    `mit`, as stated by whoever published these weights.
    <BLANKLINE>
    ## Citation
    <BLANKLINE>
    """
    _, front, body = text.split("---\n", 2)
    before, section, after = body.partition(f"\n{_LICENSE}\n")
    assert section, "a card has a section on its licence"
    _, heading, rest = after.partition("\n## ")
    said = f"{code(license)}, as stated by whoever published these weights."
    return f"---\nlicense: {license}\n{_STATED.sub('', front)}---\n{before}{section}\n{said}\n{heading}{rest}"


def _citations(record: Record) -> Iterator[str]:
    growth = record.recipe.get("growth") or {}
    papers = [
        known[growth[axis]].paper for axis, known in (("width", WIDTHS), ("depth", DEPTHS)) if growth.get(axis) in known
    ]
    yield "## Citation"
    yield ""
    yield "LiGO, the architecture and the source:" if record.hub_id is not None else "LiGO and the architecture:"
    yield ""
    yield "```bibtex"
    yield _LIGO
    yield FAMILIES[record.family].paper
    if record.hub_id is not None:
        yield _entry(record.hub_id, str(record.source["revision"]))
    yield "```"
    cited = dict.fromkeys(
        part for paper in papers for part in paper.split("; ") if part != "-" and "2303.00980" not in part
    )
    if cited:
        yield ""
        yield "The start is from:"
        yield ""
        yield from ("- " + ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", part) for part in cited)
    yield ""
    yield _cited_source(record)


def _entry(hub_id: str, commit: str) -> str:
    """The source on the Hub as BibTeX."""
    title, place = hub_id.replace("_", r"\_"), f"https://huggingface.co/{hub_id}/tree/{commit}"
    lines = {"title": title, "howpublished": "Hugging Face Hub", "note": f"commit {commit}", "url": place}
    return "@misc{source,\n" + ",\n".join(f"  {key:<12} = {{{value}}}" for key, value in lines.items()) + "\n}"


def _cited_source(record: Record) -> str:
    if record.hub_id is not None:
        return (
            f"If [the source's page](https://huggingface.co/{record.hub_id}) asks for another citation, that one holds."
        )
    if record.source["pretrained_here"]:
        return "The source was trained for this model, by the same recipe: there is nothing else to cite for it."
    name = code(record.source_name)
    return f"The source, {name}, is not on the Hub: cite it as whoever made it asks. Its digests are above."
