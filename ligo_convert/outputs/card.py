"""Write the model card: README.md of an output directory, with the Hub's metadata in front.

Input: the `Record` of a run and the sizes of the other files. Output: Markdown in UTF-8, the same for the same record. Times appear in one
line of the section on provenance only.

Names, config values and reasons come from files that others wrote. They are quoted, so that they contain no markup, link or control
character.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ligo_convert.checkpoints.files import PROCESSOR
from ligo_convert.checkpoints.model_files import MODULES
from ligo_convert.families.registry import FAMILIES
from ligo_convert.families.schema import HEADLESS, WITHOUT_LOSS
from ligo_convert.growth.depth_methods import DEPTHS
from ligo_convert.growth.width_methods import WIDTHS
from ligo_convert.io.yaml_writer import dump_yaml
from ligo_convert.outputs.card_training import family_of_record, has_tokenizer, training_advice
from ligo_convert.outputs.markdown import ARXIV, code, prose, table
from ligo_convert.outputs.privacy import check_nothing_private
from ligo_convert.outputs.provenance import Record
from ligo_convert.outputs.usage import loading_lines

PIPELINES = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "encoder": "feature-extraction",
    "decoder": "feature-extraction",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "multiple-choice": "multiple-choice",
    "text-to-text": "text2text-generation",
    "image-classification": "image-classification",
    "image-encoder": "image-feature-extraction",
}

_AGREEMENT = (
    "Disagreement with the source (relative error of hidden states and of cosines between sequences; 0 is equal)",
    "relative",
)

# Task -> name of its loss, unit of its loss.
LOSSES = {
    "causal-lm": ("Mean next-token loss", "nats a token"),
    "masked-lm": ("Mean loss on masked tokens", "nats a masked token"),
    **dict.fromkeys(WITHOUT_LOSS, _AGREEMENT),
    "image-encoder": (
        "Disagreement with the source (relative error of pooled states and of cosines between images; 0 is equal)",
        "relative",
    ),
    "image-classification": ("Mean classification loss", "nats an image"),
}

FIGURE = "ligo/fit.png"

_SOURCE_FOLDER = "ligo/source/"

_LIGO_BIBTEX = """@inproceedings{wang2023learning,
  title     = {Learning to Grow Pretrained Models for Efficient Transformer Training},
  author    = {Wang, Peihao and Panda, Rameswar and Torroba Hennigen, Lucas and Greengard, Philip and Karlinsky, Leonid and
               Feris, Rogerio and Cox, David Daniel and Wang, Zhangyang and Kim, Yoon},
  booktitle = {International Conference on Learning Representations},
  year      = {2023},
  url       = {https://arxiv.org/abs/2303.00980}
}"""


def _verdict_in_words(record: Record, verdict: str, *, measured: str | None) -> str:
    """Return what a verdict means, as a predicate of "the initial operator".

    Verdicts are about logits, or about the last hidden states if the model has no head or a new one.

    Args:
        measured: the verdict of the measured differences alone; None where nothing was measured.
    """
    if verdict == "lossy":
        return "does not preserve the function of the source"
    if verdict == "near" and measured == "exact":
        what = "last hidden states" if _compares_hidden_states(record) else "logits"
        return (
            f"does not preserve the function of the source exactly, by its mathematics; on the inputs measured, the {what} differ by "
            "no more than the table below shows, which is within the limit for exact methods"
        )
    if _compares_hidden_states(record):
        new_head = any("(new head)" in name for name in record.drawn)
        head = ". The head is new and randomly initialised" if new_head else ""
        if verdict == "exact":
            return f"preserves the last hidden states of the source up to rounding errors{head}"
        return f"preserves the last hidden states of the source with a mean squared error below 1 % of their mean square{head}"
    if verdict == "exact":
        return "preserves the function of the source: every logit equals the source's up to rounding errors"
    if family_of_record(record).task in WITHOUT_LOSS:
        return "preserves the logits of the source with a mean squared error below 1 % of their mean square"
    return f"preserves the source's loss within 0.01 {LOSSES[family_of_record(record).task][1]}, but not every logit"


def _compares_hidden_states(record: Record) -> bool:
    """Return True if preservation was measured on the last hidden states instead of logits."""
    compared = record.metrics["preservation"].get("compared")
    if compared is not None:
        return bool(compared == "hidden states")
    return family_of_record(record).task in HEADLESS or any("(new head)" in name for name in record.drawn)


def card(record: Record, *, files: Mapping[str, int], figure: bool) -> str:
    """Return the text of README.md for an output directory.

    Args:
        record: the record of the run.
        files: the other files in the directory, name -> size in bytes.
        figure: whether the plot of the fit is among them.

    Raises:
        LigoError: the card would contain something private.
    """
    sections = (
        _opening(record),
        size_table(record),
        _method(record),
        _preservation(record),
        _losses(record, figure=figure),
        loading(record, files),
        files_of_source(record),
        training_advice(record, files),
        _limits(record),
        _provenance(record, files),
        licence(record),
        citations(record),
    )
    return assembled(record, sections)


def assembled(record: Record, sections: Iterable[Iterable[str]]) -> str:
    """Return the text of a card: its metadata and its sections. Raises LigoError if it would contain something private."""
    text = front_matter(record) + "\n" + "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines) + "\n"
    check_nothing_private(text, where="README.md", names_in=record.strings(), public=record.hub_ids)
    return text


# --- metadata ---------------------------------------------------------------------------------------------------------


def front_matter(record: Record) -> str:
    family = family_of_record(record)
    data: dict[str, object] = {"library_name": family.library, "pipeline_tag": PIPELINES[family.task]}
    if _is_pipeline(record):
        data = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
    if record.source["license"] is not None:
        data["license"] = str(record.source["license"]).lower()
    dataset = _dataset(record)
    if dataset is not None:
        data["datasets"] = [dataset]
    data["tags"] = ["ligo", "model-growth", family.model_type]
    text = dump_yaml(data)
    if record.hub_id is not None:
        relation = dump_yaml({"base_model": record.hub_id, "base_model_relation": "finetune"})
        # Without a relation the Hub guesses one.
        text += "# The Hub has no relation `grown`; `finetune` is the closest one.\n" + relation
    return f"---\n{text}---\n"


def _dataset(record: Record) -> str | None:
    dataset = (record.data_section.get("hub") or {}).get("id")
    return None if dataset is None else str(dataset)


# --- description ------------------------------------------------------------------------------------------------------


def described_source(record: Record) -> str:
    """Return the source so that a reader can find it: a link with a commit, or a description."""
    if record.hub_id is not None:
        name = prose(record.hub_id)
        commit = str(record.source["revision"])
        return f"[{name}](https://huggingface.co/{record.hub_id}) at commit {code(commit[:12])}"
    if record.source["pretrained_here"]:
        trained = record.metrics.get("pretrain")
        how = f" ({trained['steps']:,} steps, {trained['tokens']:,} tokens)" if trained else ""
        return f"a small {FAMILIES[record.family].model_type} model, which the same recipe pretrained{how}"
    return f"{code(record.source_name)}, a checkpoint that is not on the Hub"


def _opening(record: Record) -> Iterator[str]:
    parameters = record.metrics["parameters"]
    name = record.source_name.rpartition("/")[2]
    title = "A grown model" if record.source["pretrained_here"] else f"{prose(name)}, grown"
    drawn = ", except for randomly initialised parts" if record.drawn else ""
    ratio = parameters["target"] / parameters["source"]
    yield f"# {title}"
    yield ""
    yield (
        f"A {FAMILIES[record.family].model_type} model with {parameters['target']:,} parameters. "
        f"It was grown by a factor of {ratio:.2f} from {described_source(record)}, which has {parameters['source']:,} parameters, with "
        f"[LiGO](https://arxiv.org/abs/2303.00980) (learned linear growth operator). "
        f"Its neurons and layers are linear combinations of the source's{drawn}."
    )
    yield ""
    yield "**A grown model is an initialisation for further training, not a finished model.** Train it before use."


def size_table(record: Record) -> Iterator[str]:
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
    tie = ", input maps tied to output maps as the paper's equations are printed" if operator["tie"] else ""
    size = f"{count['width']:,} width coefficients, {count['depth']:,} depth coefficients"
    yield f"- operator: {_KEYINGS[operator['keying']]}{tie}; {size}"
    if "apply" in record.recipe:
        yield "- an earlier run produced the operator; it was applied to this source"
    elif fit is None:
        yield "- the operator was not trained: the weights come from the initial operator"
    elif not fit["best_step"]:
        yield (
            f"- {fit['steps']:,} training steps did not improve the operator on held-out data: "
            "the weights come from the initial operator"
        )
    else:
        best = f"step {fit['best_step']:,} had the lowest loss on held-out data and was applied"
        yield f"- the operator was trained for {fit['steps']:,} steps; {best}"
    if operator["parted"]:
        axes = ", ".join(map(code, operator["parted"]))
        yield f"- in layers that start silent, the signs of the weights of copied entries are random, so that copies differ: {axes}"
    for name in record.drawn:
        yield f"- randomly initialised, as in the library: {prose(name)}"
    if record.nonfinite_allowed:
        yield "- **NaN and infinite values were not rejected**, because the recipe allows them (`source.allow_nonfinite`)"


_KEYINGS = {
    "source": "one set of width maps for each source layer, as in the paper",
    "target": "one set of width maps for each target layer, as in the paper's code",
    "shared": "one set of width maps for all layers",
}


# --- figures ----------------------------------------------------------------------------------------------------------


def _preservation(record: Record) -> Iterator[str]:
    preservation, fit = record.metrics["preservation"], record.metrics["fit"]
    verdict, planned = preservation.get("verdict"), preservation.get("planned")
    yield "## Function preservation"
    yield ""
    unmeasured = prose(preservation.get("unmeasured") or "no model was run")
    if verdict is None and planned is None:
        yield f"Function preservation was not measured: {unmeasured}."
        return
    if verdict is None:
        yield f"**{planned.capitalize()}**, by construction: the initial operator {_verdict_in_words(record, planned, measured=None)}."
        yield f"It was not measured: {unmeasured}."
    else:
        measured = preservation.get("measured", verdict)
        kind = f"**{verdict.capitalize()}**" + (" (measured)" if verdict == "near" else "")
        yield f"{kind}: the initial operator {_verdict_in_words(record, verdict, measured=measured)}."
        yield f"Measured on {_measured_on(preservation)} in {preservation.get('dtype') or 'float32 or wider'}."
        if preservation.get("method") == "streamed":
            yield "Source and target did not fit in memory: each weight was read or grown when the model used it."
    if fit is not None and fit["best_step"]:
        yield ""
        yield "This verdict is about the initial operator. The weights here come from the trained operator."
    reasons = [f"- {prose(reason)}" for reason in preservation.get("reasons") or ()]
    if reasons:
        yield ""
        yield from reasons
    if verdict is None:
        return
    yield ""
    what = "hidden state" if _compares_hidden_states(record) else "logit"
    unit = LOSSES[family_of_record(record).task][1]
    rows = [
        (f"largest {what} difference", number(preservation["max_logit_difference"])),
        (f"mean {what} difference", number(preservation.get("mean_logit_difference"))),
        (f"largest {what} of the source", number(preservation.get("logit_scale"))),
        (f"loss difference, {unit}", number(preservation["loss_difference"], signed=True)),
    ]
    yield from table(("initial operator compared with source", ""), [row for row in rows if row[1]])
    if preservation.get("departs_at") is not None:
        yield ""
        yield f"Hidden states first differ from the source's at layer {preservation['departs_at']} (counted from 0)."
    rounding = preservation.get("rounding")
    if rounding:
        yield ""
        difference = rounding["loss_difference"]
        loss = "" if difference is None else f", and the loss by {number(difference, signed=True)} {unit}"
        yield (
            f"Storing the weights as {code(rounding['dtype'])} changes {what}s by at most "
            f"{number(rounding['max_logit_difference'])}{loss}. The verdict does not include this rounding."
        )


def _losses(record: Record, *, figure: bool) -> Iterator[str]:
    loss = record.metrics["loss"]
    names = {
        "source": "source",
        "random_target": "randomly initialised model of this size",
        "initial": "initial operator" if loss["fitted"] is not None else "initial operator: this model",
        "fitted": "trained operator: this model",
    }
    task = family_of_record(record).task
    perplexity, accuracy = task in ("causal-lm", "masked-lm"), record.metrics["accuracy"]
    has_accuracy = _known(accuracy, "initial")
    rows = [
        (
            text,
            _loss(loss[name]),
            *((number(_perplexity(loss[name])),) if perplexity else ()),
            *((_share(accuracy.get(name)),) if has_accuracy else ()),
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
        yield f"{what} on the test split{_split_size(record)}. It was used neither for training nor for choosing the operator."
        yield ""
        columns = (*(("perplexity",) if perplexity else ()), *(("accuracy",) if has_accuracy else ()))
        yield from table(("model", f"loss, {per}", *columns), rows)
        yield ""
    if figure:
        yield f"![Training loss of the operator by step]({FIGURE})"
        yield ""
    yield from costs


_INPUTS = {"data": "held-out {}", "random": "random {}"}


def _measured_on(preservation: Mapping[str, Any]) -> str:
    unit = "images" if preservation.get("images") else "tokens"
    return f"{preservation[unit]:,} {_INPUTS.get(preservation.get('inputs') or '', '{}').format(unit)}"


def _split_size(record: Record) -> str:
    """Return the size of the test split, such as ` of 16,384 tokens`; empty if it is unknown."""
    for unit in ("tokens", "images"):
        count = ((record.data or {}).get(unit) or {}).get("test")
        if count:
            return f" of {count:,} {unit}"
    return ""


def _costs(record: Record) -> Iterator[str]:
    fit, flops = record.metrics["fit"], record.metrics["flops"]
    if fit is not None:
        threads = f", {fit['threads']} threads" if fit.get("device") == "cpu" and fit.get("threads") else ""
        yield f"- training of the operator: {fit['steps']:,} steps, seed {fit['seed']}, {code(fit['precision'])}{threads}"
    if flops.get("pretrain"):
        yield f"- FLOPs for training the source: {number(float(flops['pretrain']))}"
    if flops.get("fit"):
        yield f"- FLOPs for training the operator: {number(float(flops['fit']))}"
    if flops.get("target_step"):
        one = "one image" if family_of_record(record).reads == "images" else "one sequence of 128 tokens"
        batch = "with the same batch size" if fit is not None else f"with a batch of {one}"
        yield f"- FLOPs for one training step of this model {batch}: {number(float(flops['target_step']))}"


def _known(figures: Mapping[str, Any], name: str) -> bool:
    return figures.get(name) is not None


def _loss(value: float) -> str:
    # Losses of initial operators differ in the third decimal, so four are shown.
    return f"{value:.4f}" if math.isfinite(value) else number(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def number(value: float | None, *, signed: bool = False) -> str:
    """Format a figure with four significant digits; None is empty.

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


# --- usage ------------------------------------------------------------------------------------------------------------


def loading(record: Record, files: Collection[str]) -> Iterator[str]:
    family = family_of_record(record)
    yield "## How to load it"
    yield ""
    yield "```python"
    note = (
        'or "hf-hub:NAME" for its repository on the Hub'
        if family.library == "timm"
        else "or the name of its repository on the Hub"
    )
    yield from loading_lines(family, ".", tokenizer=has_tokenizer(files), processor=PROCESSOR in files, note=note)
    yield "```"
    if _is_pipeline(record):
        yield ""
        yield "It is also a sentence-transformers pipeline, with all modules of its source:"
        yield ""
        yield "```python"
        yield "from sentence_transformers import SentenceTransformer"
        yield ""
        yield 'model = SentenceTransformer(".")  # or the name of its repository on the Hub'
        yield "```"


def _is_pipeline(record: Record) -> bool:
    """Return True if the modules of a sentence-transformers directory were carried."""
    return MODULES in ((record.metrics.get("files") or {}).get("carried") or ())


def files_of_source(record: Record) -> Iterator[str]:
    """Yield what became of the files beside the source's weights."""
    found = record.metrics.get("files") or {}
    carried, left = found.get("carried") or (), found.get("left_behind") or ()
    if not carried and not left:
        return
    yield "## Files of the source"
    yield ""
    if carried:
        yield f"Carried byte for byte: {', '.join(map(code, carried))}."
    yield f"Written again with the new sizes: {', '.join(map(code, found['rewritten']))}."
    if any(item["path"] == MODULES for item in left):
        yield "**The source is a sentence-transformers pipeline, and this model is not**: its modules are left behind."
    if left:
        yield ""
        yield "Left behind:"
        yield ""
        yield from (f"- {code(item['path'])}: {prose(item['reason'])}" for item in left)


def _limits(record: Record) -> Iterator[str]:
    verdict = record.metrics["preservation"].get("verdict")
    yield "## Limits"
    yield ""
    yield "- Growth adds capacity, not knowledge. Without further training, expect it to be at best about as good as its source."
    yield "- The model inherits the errors and biases of its source. It was not evaluated on any benchmark."
    if verdict == "lossy" or verdict is None:
        yield "- Every output may differ from the source's. Check the figures above before use."
    if verdict is not None and record.metrics["preservation"].get("inputs", "data") == "random":
        yield (
            "- Preservation was measured on random inputs, because there was no data: "
            "it shows how far the two models agree, not how good they are."
        )
    yield "- Figures hold for the data they were measured on. Their last digits depend on the processor."


# --- origin -----------------------------------------------------------------------------------------------------------


def _provenance(record: Record, files: Mapping[str, int]) -> Iterator[str]:
    includes_source = any(name.startswith(_SOURCE_FOLDER) for name in files)
    source = record.hub_id or (_SOURCE_FOLDER.rstrip("/") if includes_source else "SOURCE")
    seconds = record.metrics["seconds"]
    took = ", ".join(f"{stage} {number(float(value))} s" for stage, value in seconds.items())
    memory = f"; peak memory {record.metrics['peak_rss_bytes'] / 1e9:.2f} GB"
    yield "## Provenance"
    yield ""
    yield "`ligo/SHA256SUMS` lists the SHA-256 of every file. `ligo/provenance.json` records the inputs, the recipe and the software."
    yield "Neither file is signed."
    yield ""
    yield "```sh"
    yield "# check that no file changed"
    yield "sha256sum -c ligo/SHA256SUMS"
    yield "# recompute every tensor from the source and the operator, and load the model"
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


def licence(record: Record) -> Iterator[str]:
    yield _LICENSE
    yield ""
    stated = record.source["license"]
    if stated is not None:
        yield f"{code(stated)}, inherited from the source: the weights are derived from the source, so its terms apply."
    elif record.source["pretrained_here"]:
        yield "No licence was stated. The same recipe trained the source, so whoever publishes the model states the licence."
    else:
        yield "The source states no licence, so none is given here. The source's terms apply to derived weights; ask its authors."


_LICENSE = "## Licence"

_STATED = re.compile(r"(?m)^license: .*\n")


def under_license(text: str, license: str) -> str:
    """Return a card with the publisher's licence in its metadata and text.

    Args:
        text: a card written by `card`.
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
    `mit`, as stated by the publisher of these weights.
    <BLANKLINE>
    ## Citation
    <BLANKLINE>
    """
    _, front, body = text.split("---\n", 2)
    before, section, after = body.partition(f"\n{_LICENSE}\n")
    assert section, "a card has a section on its licence"
    _, heading, rest = after.partition("\n## ")
    sentence = f"{code(license)}, as stated by the publisher of these weights."
    return f"---\nlicense: {license}\n{_STATED.sub('', front)}---\n{before}{section}\n{sentence}\n{heading}{rest}"


def citations(record: Record) -> Iterator[str]:
    growth = record.recipe.get("growth") or {}
    papers = [
        known[growth[axis]].paper for axis, known in (("width", WIDTHS), ("depth", DEPTHS)) if growth.get(axis) in known
    ]
    yield "## Citation"
    yield ""
    what = "LiGO, the architecture and the source" if record.hub_id is not None else "LiGO and the architecture"
    yield f"Please cite {what}:"
    yield ""
    yield "```bibtex"
    yield _LIGO_BIBTEX
    yield FAMILIES[record.family].paper
    if record.hub_id is not None:
        yield _source_bibtex(record.hub_id, str(record.source["revision"]))
    yield "```"
    cited = dict.fromkeys(
        part for paper in papers for part in paper.split("; ") if part != "-" and "2303.00980" not in part
    )
    if cited:
        yield ""
        yield "The initial operator uses methods from:"
        yield ""
        yield from ("- " + ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", part) for part in cited)
    yield ""
    yield _citation_of_source(record)


def _source_bibtex(hub_id: str, commit: str) -> str:
    """Return the BibTeX entry of a source on the Hub."""
    title, url = hub_id.replace("_", r"\_"), f"https://huggingface.co/{hub_id}/tree/{commit}"
    lines = {"title": title, "howpublished": "Hugging Face Hub", "note": f"commit {commit}", "url": url}
    return "@misc{source,\n" + ",\n".join(f"  {key:<12} = {{{value}}}" for key, value in lines.items()) + "\n}"


def _citation_of_source(record: Record) -> str:
    if record.hub_id is not None:
        return f"If [the source's page](https://huggingface.co/{record.hub_id}) asks for another citation of the source, use that one."
    if record.source["pretrained_here"]:
        return "The same recipe trained the source, so it needs no citation."
    name = code(record.source_name)
    return f"The source, {name}, is not on the Hub. Cite it as its authors ask; its digests are listed above."
