"""Laws of the model card: the Hub reads its metadata, figures stand in it, nothing foreign in it does anything."""

from __future__ import annotations

import doctest
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support import records
from support.measured_comparisons import MEASURED
from support.records import RECORD

from ligo_convert.errors import LigoError, printable
from ligo_convert.families.registry import FAMILIES
from ligo_convert.outputs import advice, layout, markdown
from ligo_convert.outputs import card as card_module
from ligo_convert.outputs.card import card
from ligo_convert.outputs.markdown import code, prose, table
from ligo_convert.outputs.provenance import Record

FILES = {**records.FILES, "tokenizer.json": 9000}
GOLDEN = Path(__file__).parent / "golden" / "card.md"
PARSER = MarkdownIt("commonmark").enable("table")

HOSTILE = (
    "\x1b]8;;http://evil\x07click\x1b]8;;\x07",
    "\u202egnp.exe",
    "\x9b31m",
    "[link](http://evil)",
    "![x](http://evil/x.png)",
    "<script>alert(1)</script>",
    "<img src=x onerror=y>",
    "http://evil.example www.evil.example a@evil.example",
    "| cell | cell |",
    r"a\|b",
    "`code` ``two``",
    "`",
    " ` ",
    "\n# heading\n\n- item",
    "---\nlicense: mit\n---",
    "$x^2$ **bold** __init__ ~~no~~",
    "{{ config }} {% raw %} &lt;b&gt; \\*",
    "",
    "   ",
    "x" * 5000,
)


def tokens(text: str) -> list[Any]:
    found = []
    for token in PARSER.parse(text):
        found += [token, *(token.children or [])]
    return found


def shown(text: str) -> str:
    return "".join(token.content for token in tokens(text) if token.type in ("text", "code_inline"))


def front(text: str) -> Any:
    from huggingface_hub import ModelCard

    return ModelCard(text).data


def body(record: Record, *, figure: bool = False) -> str:
    return card(record, files=FILES, figure=figure)


# --- as a whole -------------------------------------------------------------------------------------------------------


def test_the_card_of_a_record_is_the_one_we_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    # Advice changes with every comparison that is recorded.
    monkeypatch.setattr(advice, "measured_by_task", lambda: {"causal-lm": MEASURED})
    text = body(RECORD, figure=True)
    if os.environ.get("LIGO_UPDATE_GOLDENS"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_times_stand_in_one_line() -> None:
    later = records.with_metrics(
        replace(RECORD, started="2027-01-01T00:00:00Z", finished="2027-01-01T00:00:09Z"),
        seconds={"plan": 1.0, "fit": 2.0, "write": 3.0, "verify": 4.0},
        peak_rss_bytes=1,
    )
    different = [
        (old, new) for old, new in zip(body(RECORD).splitlines(), body(later).splitlines(), strict=True) if old != new
    ]
    assert len(different) == 1
    assert "2027-01-01T00:00:09Z" in different[0][1]


@pytest.mark.parametrize("module", [card_module, markdown])
def test_examples_in_docstrings(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_the_hub_reads_the_metadata() -> None:
    data = front(body(RECORD))
    assert data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "datasets": ["Salesforce/wikitext"],
        "tags": ["ligo", "model-growth", "gpt2"],
        "base_model": "openai-community/gpt2",
        "base_model_relation": "finetune",
    }


def test_a_source_that_is_not_on_the_hub_is_no_base_model() -> None:
    for record in (
        records.local(RECORD),
        records.with_source(RECORD, label="x/y", revision=None, pretrained_here=True),
    ):
        text = body(record)
        data = front(text).to_dict()
        assert "base_model" not in data
        assert "base_model_relation" not in data
        assert "huggingface.co/" not in text


def test_a_label_that_only_claims_a_commit_is_no_base_model() -> None:
    for label, revision in (("a/b/c", records.COMMIT), ("a b; rm -rf .", records.COMMIT), ("gpt2", "main")):
        text = body(records.with_source(RECORD, label=label, revision=revision))
        assert "base_model" not in front(text).to_dict()
        assert f"--source {label}" not in text


def test_a_licence_is_inherited_and_never_invented() -> None:
    assert "`mit`, inherited from the source" in body(RECORD)
    for record in (records.with_source(RECORD, license=None), records.with_source(records.local(RECORD), license=None)):
        text = body(record)
        assert "license" not in front(text).to_dict()
        assert "states no licence" in text
    own = records.with_source(RECORD, license=None, pretrained_here=True, revision=None, label="a source")
    assert "No licence was stated" in body(own)


def test_a_hostile_licence_stays_one_value() -> None:
    data = front(body(records.with_source(RECORD, license="mit\nbase_model: evil/model # \"'")))
    assert data.license == "mit\nbase_model: evil/model # \"'"
    assert data.base_model == "openai-community/gpt2"


# --- what it says -----------------------------------------------------------------------------------------------------


def test_sizes_show_every_key_that_differs_and_no_other() -> None:
    text = body(RECORD)
    for key, old, new in (
        ("n_embd", "`768`", "`1024`"),
        ("layer_norm_epsilon", "`1e-05`", "`7.5e-06`"),
        ("n_inner", "not set", "`[4096, null]`"),
        ("summary_type", "`cls_index`", "not set"),
    ):
        assert f"| `{key}` | {old} | {new} |" in text
    assert "_name_or_path" not in text
    assert "`model_type`" not in text
    assert "| parameters | 124,439,808 | 354,823,168 |" in text


def test_what_is_not_known_is_left_out() -> None:
    text = body(records.unfitted())
    assert "**Exact**, by construction" in text
    assert "the operator was not trained" in text
    for absent in (
        "nats a token",
        "perplexity",
        "![",
        "None",
        "null",
        "training of the operator:",
        "This verdict is about",
    ):
        assert absent not in text.replace("`[4096, null]`", "")
    assert "with a batch of one sequence of 128 tokens: 4.43e+12" in text
    assert "with the same batch size: 4.43e+12" in body(RECORD)
    loss = {"source": 3.0, "initial": 3.1, "fitted": None, "random_target": None}
    some = body(records.with_metrics(records.unfitted(), loss=loss))
    assert "| initial operator: this model | 3.1000 | 22.2 |" in some
    assert "randomly initialised" not in some


def test_an_applied_operator_has_a_card() -> None:
    nothing = dict.fromkeys(("verdict", "max_logit_difference", "loss_difference"))
    record = records.with_metrics(
        replace(records.unfitted(), recipe={"version": 1, "apply": {"operator": "0" * 64}}),
        preservation=nothing,
        flops={"fit": 0, "target_step": None},
    )
    text = body(replace(record, operator={**record.operator, "starts": []}))
    assert "it was applied to this source" in text
    assert "preservation was not measured" in text
    assert "Loss and cost" not in text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("exact", "every logit equals the source's"), ("near", "within 0.01 nats"), ("lossy", "does not preserve")],
)
def test_the_certificate_in_words_and_figures(verdict: str, words: str) -> None:
    text = body(records.with_metrics(RECORD, preservation={**records.METRICS["preservation"], "verdict": verdict}))
    assert f"**{verdict.capitalize()}**" in text
    assert words in text
    assert "| largest logit difference | 0.01235 |" in text
    assert "-0.00217" in text
    assert "`bfloat16` changes logits by at most 0.52" in text
    assert "The weights here come from the trained operator" in text
    assert ("Every output may differ" in text) == (verdict == "lossy")


def test_a_fit_that_found_nothing_better_says_so() -> None:
    text = body(records.with_metrics(RECORD, fit={**records.METRICS["fit"], "best_step": 0}))
    assert "did not improve the operator" in text
    assert "The weights here come from the trained operator" not in text


def test_figures_that_are_no_numbers_are_called_so() -> None:
    broken = {**records.METRICS["preservation"], "max_logit_difference": float("nan"), "verdict": "lossy"}
    loss = {**records.METRICS["loss"], "fitted": float("inf"), "random_target": 1000.0}
    text = body(records.with_metrics(RECORD, preservation=broken, loss=loss))
    assert "| largest logit difference | not a number |" in text
    assert "| trained operator: this model | infinite | infinite |" in text
    assert "| randomly initialised model of this size | 1000.0000 | infinite |" in text


def test_a_source_trained_here_is_named_and_can_be_verified() -> None:
    record = records.with_source(RECORD, label="a source trained by this recipe", revision=None, pretrained_here=True)
    record = records.with_metrics(record, pretrain={"steps": 300, "tokens": 614400, "last_loss": 5.0})
    text = card(record, files={**FILES, "ligo/source/model.safetensors": 5}, figure=False)
    assert "300 steps, 614,400 tokens" in text
    assert "--source ligo/source" in text


def test_what_was_drawn_and_what_was_let_through_is_said() -> None:
    text = body(replace(RECORD, drawn=["embed (new entries)"], nonfinite_allowed=True))
    assert "randomly initialised, as in the library: embed (new entries)" in text
    assert "NaN and infinite values were not rejected" in text
    assert "except for randomly initialised parts" in text


def test_papers_of_the_starts_are_cited_once() -> None:
    text = body(RECORD)
    assert text.count("arxiv.org/abs/2310.07999") == 1
    assert "StackBERT, Gong et al., ICML 2019" in text
    growth = {**records.RECIPE["growth"], "width": "lemon", "depth": "identity"}
    assert body(replace(RECORD, recipe={**RECORD.recipe, "growth": growth})).count("arxiv.org/abs/2310.07999") == 1
    growth = {**growth, "width": "direct", "depth": "interpolate"}
    assert "The initial operator uses methods from" not in body(
        replace(RECORD, recipe={**RECORD.recipe, "growth": growth})
    )


# --- how it is loaded, trained on and cited ----------------------------------------------------------------------------


def section(text: str, name: str) -> str:
    return text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("beside", "loads"),
    [
        ((), False),
        (("tokenizer_config.json", "special_tokens_map.json"), False),
        (("vocab.json",), False),
        (("vocab.json", "merges.txt"), True),
        (("vocab.txt",), True),
        (("tokenizer.model",), True),
    ],
)
def test_a_tokenizer_is_loaded_where_one_lies(beside: tuple[str, ...], loads: bool) -> None:
    text = card(RECORD, files={**records.FILES, **dict.fromkeys(beside, 5)}, figure=False)
    snippet = section(text, "How to load it")
    assert ("AutoTokenizer" in snippet) == loads
    assert "from transformers import" in snippet
    assert ("Use the tokenizer in this directory" in section(text, "Further training")) == loads
    assert ("This directory has no tokenizer" in text) != loads


def of_family(name: str, size: float) -> Record:
    family = FAMILIES[name]
    record = replace(RECORD, family=name, operator={**RECORD.operator, "head": family.heads[0].architecture})
    return records.with_metrics(record, parameters={"source": 1000, "target": int(size)})


@pytest.mark.parametrize(
    ("family", "size", "words"),
    [
        ("gpt2", 355e6, ("0.0003 from scratch, so about 0.00012", "350M", "GPT-3", "375 million tokens")),
        ("llama", 7e9, ("0.0003 from scratch, so about 0.00012", "6.7B", "LLaMA", "2,000 steps")),
        ("bert", 110e6, ("at most 0.0001", "BERT, [arXiv:1810.04805]", "10,000 of 1,000,000 steps", "2e-04", "no comparison was made")),
        ("roberta", 125e6, ("at most 0.0006", "RoBERTa, [arXiv:1907.11692]", "24,000 of 500,000 steps", "8e-04")),
        ("vit", 86e6, ("at most 0.001", "1,024 images", "5 of 300 epochs", "DeiT, [arXiv:2012.12877]")),
    ],
)  # fmt: skip
def test_training_begins_with_figures_and_where_they_are_from(
    family: str, size: float, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "measured_by_task", lambda: {"causal-lm": MEASURED})
    text = section(body(of_family(family, size)), "Further training")
    for word in words:
        assert word in text
    assert "`ligo/new_parameters.json`" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count(" | ") for line in lines} == {2}


def test_what_tells_new_parameters_is_named_where_it_lies() -> None:
    files = {name: size for name, size in FILES.items() if name != layout.NEW_PARAMETERS}
    assert layout.NEW_PARAMETERS not in card(RECORD, files=files, figure=False)


def test_a_model_without_figures_has_no_table_of_them() -> None:
    """No comparison of its kind, and no published training of its size."""
    headless = of_family("bert", 5e3)
    headless = replace(headless, operator={**headless.operator, "head": "BertModel"})
    text = section(body(headless), "Further training")
    assert "learning rate |" not in text
    assert "compare its final loss" in text


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_is_cited_by_a_paper_of_its_own(name: str) -> None:
    paper = FAMILIES[name].paper
    assert re.match(r"@(article|inproceedings|misc|techreport)\{[a-z0-9]+,\n", paper)
    assert paper.count("{") == paper.count("}")
    assert sum(family.paper == paper for family in FAMILIES.values()) == 1
    assert FAMILIES[name].trained
    assert paper in section(body(of_family(name, 1e8)), "Citation")


def test_the_source_is_cited() -> None:
    cited = section(body(RECORD), "Citation")
    assert f"https://huggingface.co/openai-community/gpt2/tree/{records.COMMIT}" in cited
    assert f"commit {records.COMMIT}" in cited
    cited = section(body(records.local(RECORD)), "Citation")
    assert "`gpt2-tiny`, is not on the Hub" in cited
    assert "@misc{source" not in cited
    own = records.with_source(RECORD, label="a source", revision=None, pretrained_here=True, license=None)
    assert "The same recipe trained the source" in section(body(own), "Citation")
    named = records.with_source(RECORD, label="a_b/c_d")
    assert r"{a\_b/c\_d}" in section(body(named), "Citation")


# --- nothing foreign does anything ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_is_shown_and_does_nothing(text: str) -> None:
    expected = printable(text).replace("|", r"\x7c")
    for quoted in (code(text), prose(text)):
        assert "\n" not in quoted
        for document in (quoted, f"- {quoted}", f"before {quoted} after"):
            kinds = {token.type for token in tokens(document)}
            assert not kinds & {
                "link_open",
                "image",
                "html_inline",
                "html_block",
                "heading_open",
                "hr",
                "fence",
                "strong_open",
            }
        if text.strip() and len(text) <= markdown.LONGEST:
            assert shown(f"before {quoted} after") == f"before {expected} after"
        rows = list(table(("a", "b"), [(quoted, quoted)]))
        cells = [token for token in PARSER.parse("\n".join(rows)) if token.type == "td_open"]
        assert len(cells) == 2


@given(st.text(alphabet=st.sampled_from("ab \\`*_[]()<>!#|&;:/.@-+=~$\n\t\x1b\u202e\u00e9"), min_size=1, max_size=12))
def test_quoting_shows_any_text_as_it_is(text: str) -> None:
    for quote in (code, prose):
        document = f"before {quote(text)} after"
        assert shown(document) == f"before {printable(text).replace('|', chr(92) + 'x7c')} after"
        row = list(table(("a", "b"), [(quote(text), "end")]))
        parsed = PARSER.parse("\n".join(row))
        assert sum(token.type == "td_open" for token in parsed) == 2


@pytest.mark.parametrize("text", HOSTILE[:-3])
def test_a_card_of_hostile_strings_has_the_structure_of_a_tame_one(text: str) -> None:
    preservation = {**records.METRICS["preservation"], "reasons": [text]}
    hostile = records.with_metrics(
        replace(
            records.local(RECORD, label=text),
            source_config={**records.SOURCE_CONFIG, "summary_type": text, text: 1},
            drawn=[text],
            versions={**RECORD.versions, "torch": text},
            operator={**RECORD.operator, "starts": [text]},
        ),
        preservation=preservation,
    )
    tame = records.with_metrics(
        replace(
            records.local(RECORD, label="label"),
            source_config={**records.SOURCE_CONFIG, "summary_type": "value", "key": 1},
            drawn=["row"],
            operator={**RECORD.operator, "starts": ["start"]},
        ),
        preservation={**preservation, "reasons": ["reason"]},
    )
    marks = (
        "link_open",
        "image",
        "html_inline",
        "html_block",
        "heading_open",
        "tr_open",
        "td_open",
        "list_item_open",
        "fence",
    )

    def structure(record: Record) -> list[int]:
        found = [token.type for token in tokens(body(record).split("---\n", 2)[2])]
        return [found.count(mark) for mark in marks]

    assert structure(hostile) == structure(tame)
    assert front(body(hostile)).to_dict() == front(body(tame)).to_dict()
    assert all(character.isprintable() or character == "\n" for character in body(hostile))


def test_a_private_string_stops_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/canary-person")
    preservation = {**records.METRICS["preservation"], "reasons": ["read /home/canary-person/models"]}
    with pytest.raises(LigoError, match=r"README\.md: the home directory would appear in a file") as caught:
        body(records.with_metrics(RECORD, preservation=preservation))
    assert caught.value.exit_code == 70
    assert "canary" not in str(caught.value)


def test_a_private_folder_name_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "canaryperson")
    text = body(records.local(RECORD, label="canaryperson-gpt2"))
    assert "canaryperson" not in text
    assert "a local checkpoint" in text


def test_a_model_without_a_head_is_told_by_its_hidden_states() -> None:
    found = {
        **records.METRICS["preservation"],
        "compared": "hidden states",
        "verdict": "exact",
        "loss_difference": None,
    }
    headless = replace(RECORD, family="bert", operator={**RECORD.operator, "head": "BertModel"})
    text = body(records.with_metrics(headless, task="encoder", preservation=found))
    assert "the last hidden states of the source up to rounding" in text
    assert "| largest hidden state difference |" in text
    assert "every logit" not in text
    drawn = replace(records.with_metrics(RECORD, preservation=found), drawn=["lm_head.weight (new head)"])
    assert "The head is new and randomly initialised" in body(drawn)


def test_near_is_said_in_the_unit_of_the_task() -> None:
    image = replace(RECORD, family="vit", operator={**RECORD.operator, "head": "VisionTransformer"})
    found = {**records.METRICS["preservation"], "verdict": "near"}
    assert "within 0.01 nats an image" in body(
        records.with_metrics(image, task="image-classification", preservation=found)
    )
