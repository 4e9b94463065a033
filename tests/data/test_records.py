"""Records become text: columns, prompts with completions, and conversations as transformers renders them."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.corpora import Data, Folder, Hub, slices, trained, write

from ligo_convert.data.chat_template import DATE, ChatTemplate, load_chat_template
from ligo_convert.data.corpus import check_data, documents
from ligo_convert.data.records import FORMATS, Records
from ligo_convert.data.tokenizers import load_tokenizer
from ligo_convert.errors import LigoError, RecipeError, SourceError
from ligo_convert.limits import TEMPLATE_CHARACTERS

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
)
DIALOGUE = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Three."}]
RENDERED = "<|user|>\nHow many?<|endoftext|>\n<|assistant|>\nThree.<|endoftext|>\n"


def here() -> str:
    return "here"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer(plain: Path, tmp_path: Path) -> Path:
    """A tokenizer with a chat template."""
    shutil.copytree(plain, tmp_path / "tokenizer")
    write(tmp_path / "tokenizer" / "chat_template.jinja", TEMPLATE)
    return tmp_path / "tokenizer"


def template_of(directory: Path) -> ChatTemplate:
    return load_chat_template(directory, load_tokenizer(directory))


def jsonl(path: Path, *records: object) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "record", "text"),
    [
        (Records(), {"text": "a", "id": 3}, "a"),
        (Records(column="body"), {"body": "b", "text": "a"}, "b"),
        (Records(format="completion"), {"prompt": "1 + 1 =", "completion": " 2"}, "1 + 1 = 2"),
    ],
)
def test_a_record_becomes_text(records: Records, record: dict[str, Any], text: str) -> None:
    assert records.text(record, where=here) == text


@pytest.mark.parametrize(
    ("records", "record"),
    [
        (Records(format="chat"), {"messages": DIALOGUE}),
        (Records(format="chat", column="conversation"), {"conversation": DIALOGUE, "messages": None}),
        (Records(format="completion"), {"prompt": DIALOGUE[:1], "completion": DIALOGUE[1:]}),
        (
            Records(format="chat"),
            {"messages": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Three."}]},
        ),
        (
            Records(format="chat"),
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "How many?"}]}, DIALOGUE[1]]},
        ),
    ],
)
def test_every_form_of_a_conversation_is_the_same_text(
    records: Records, record: dict[str, Any], tokenizer: Path
) -> None:
    assert replace(records, template=template_of(tokenizer)).text(record, where=here) == RENDERED
    # Without a template, as for the training of a tokenizer, the contents alone.
    assert records.text(record, where=here) == "How many?\nThree."


@pytest.mark.parametrize(
    ("records", "record", "found"),
    [
        (Records(), {"content": "x"}, "no text among: content"),
        (Records(), {"text": ["x"]}, "list, no text"),
        (Records(format="chat"), {"text": "x"}, "no messages among: text"),
        (Records(format="chat"), {"messages": "x"}, "str in the place of a list"),
        (Records(format="chat"), {"messages": []}, "no messages"),
        (Records(format="chat"), {"messages": ["x"]}, "str in the place of a message"),
        (Records(format="chat"), {"messages": [{"role": "user", "content": None}]}, "keys content, role"),
        (Records(format="chat"), {"messages": [{"from": "stranger", "value": "x"}]}, "keys from, value"),
        (
            Records(format="chat"),
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]},
            "a part that is no text",
        ),
        (
            Records(format="chat"),
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]},
            "tool_calls",
        ),
        (Records(format="completion"), {"prompt": "x"}, "no completion among: prompt"),
        (Records(format="completion"), {"prompt": "x", "completion": DIALOGUE}, "str in the place of a list"),
    ],
)
def test_a_record_of_another_form_is_refused(records: Records, record: dict[str, Any], found: str) -> None:
    with pytest.raises(RecipeError, match="here: data: record without text") as caught:
        records.text(record, where=here)
    assert found in str(caught.value)
    assert all(f'"{column}"' in str(caught.value.expected) for column in records.columns)


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_of_a_format_is_read_by_it(name: Any) -> None:
    records = Records(format=name)
    assert records.text(json.loads(records.example), where=here)


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_template_is_rendered_as_transformers_renders_it(tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    library = AutoTokenizer.from_pretrained(tokenizer)
    expected = library.apply_chat_template(DIALOGUE, tokenize=False)
    assert template_of(tokenizer).render(DIALOGUE, where=here) == expected == RENDERED


def in_config(template: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / "chat_template.jinja").unlink()
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))

    return change


def in_json(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    write(directory / "chat_template.json", json.dumps({"chat_template": TEMPLATE}))


@pytest.mark.parametrize(
    "change",
    [
        in_config(TEMPLATE),
        in_config([{"name": "tools", "template": "x"}, {"name": "default", "template": TEMPLATE}]),
        in_json,
    ],
)
def test_a_template_is_found_where_transformers_keeps_it(change: Callable[[Path], None], tokenizer: Path) -> None:
    change(tokenizer)
    assert template_of(tokenizer).render(DIALOGUE, where=here) == RENDERED


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% if strftime_now is defined %}{% set today = strftime_now('%Y') %}{% endif %}{{ today }}",
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}",
    ],
)
def test_the_date_of_today_is_not_in_the_text(template: str, tokenizer: Path) -> None:
    """The same data gives the same tokens tomorrow."""
    write(tokenizer / "chat_template.jinja", template)
    assert template_of(tokenizer).render(DIALOGUE, where=here) == DATE


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].missing.deeper }}",
        "{% for %}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__ }}{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_template_that_fails_is_the_source_s_fault_and_runs_in_a_sandbox(template: str, tokenizer: Path) -> None:
    write(tokenizer / "chat_template.jinja", template)
    with pytest.raises(RecipeError, match="here: the tokenizer's chat template does not accept"):
        template_of(tokenizer).render(DIALOGUE, where=here)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * (TEMPLATE_CHARACTERS.most + 1), "too long"),
        (b"x" * (5 * TEMPLATE_CHARACTERS.most), "too long"),
    ],
)
def test_a_damaged_template_is_named(content: bytes, says: str, tokenizer: Path) -> None:
    write(tokenizer / "chat_template.jinja", content)
    with pytest.raises(SourceError, match=rf"chat_template\.jinja.*: .*{says}"):
        template_of(tokenizer)


# --- data -------------------------------------------------------------------------------------------------------------


def chats(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {number} plus one?"},
                {"role": "assistant", "content": str(number + 1)},
            ]
        }
        for number in range(count)
    ]


def test_conversations_are_tokenised_with_their_special_tokens(tmp_path: Path, tokenizer: Path) -> None:
    jsonl(tmp_path / "chat.jsonl", *chats(400))
    data = Data(text=["*.jsonl"], format="chat")
    splits = slices(tmp_path, tokenizer, data=data)
    library = load_tokenizer(tokenizer)
    text = library.decode(splits.train.take(range(len(splits.train)))["input_ids"].reshape(-1))
    assert "<|assistant|>\n" in text
    # The template ends a message with the end token, and each document ends with it.
    ends = text.count("<|endoftext|>")
    assert ends / text.count("<|user|>") == pytest.approx(3, rel=0.1)
    assert splits.digest == slices(tmp_path, tokenizer, data=data).digest


def test_conversations_without_a_template_say_what_is_missing(tmp_path: Path, plain: Path) -> None:
    jsonl(tmp_path / "chat.jsonl", *chats(400))
    with pytest.raises(RecipeError, match="chat template of the tokenizer, and it has none"):
        slices(tmp_path, plain, data=Data(text=["*.jsonl"], format="chat"))
    jsonl(
        tmp_path / "chat.jsonl",
        *({"prompt": f"{number} + 1 = ", "completion": str(number + 1)} for number in range(400)),
    )
    # Texts need none.
    assert len(slices(tmp_path, plain, data=Data(text=["*.jsonl"], format="completion")).train)


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = importlib.import_module("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=50)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv", "saved", "splits"])
def test_every_kind_of_data_reads_the_same_column(kind: str, tmp_path: Path) -> None:
    import datasets

    rows = [{"body": f"row {number} of it", "text": "another column"} for number in range(300)]
    match kind:
        case "jsonl":
            jsonl(tmp_path / "a.jsonl", *rows)
            data = Data(text=["*.jsonl"], column="body")
        case "parquet":
            table(tmp_path / "a.parquet", rows)
            data = Data(text=["*.parquet"], column="body")
        case "csv":
            write(tmp_path / "d" / "train.csv", "body,text\n" + "".join(f"{r['body']},{r['text']}\n" for r in rows))
            data = Data(dataset=Folder(path="d"), column="body")
        case "saved":
            datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "d")
            data = Data(dataset=Folder(path="d"), column="body")
        case _:
            splits = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:3])}
            datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
            data = Data(dataset=Folder(path="d", split="train"), column="body")
    write(tmp_path / "d" / ".cache" / "notes.json", "{}")
    facts = check_data(data, base=tmp_path)
    assert facts.nbytes > 0
    assert not [file for file in facts.files if ".cache" in file.parts]
    found = list(documents(data, base=tmp_path, seed=0))
    assert sorted(found) == sorted(row["body"] for row in rows)
    assert found == list(documents(data, base=tmp_path, seed=0))
    assert found != list(documents(data, base=tmp_path, seed=1))


def test_conversations_in_a_table(tmp_path: Path, tokenizer: Path) -> None:
    table(tmp_path / "a.parquet", chats(120))
    data = Data(text=["*.parquet"], format="chat")
    check_data(data, base=tmp_path)
    found = list(documents(data, base=tmp_path, seed=0, template=template_of(tokenizer)))
    assert len(found) == 120
    assert all(text.startswith("<|user|>\nWhat is") for text in found)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Data(dataset=Folder(path="nowhere")), "'nowhere' is no folder"),
        (Data(dataset=Folder(path="empty")), "no file"),
        (Data(dataset=Folder(path="d")), "no column text"),
        (Data(dataset=Folder(path="d"), format="chat"), "no column messages"),
        (Data(dataset=Folder(path="d", split="nowhere"), column="body"), "cannot be loaded with these settings"),
        (Data(dataset=Folder(path="broken"), column="body"), r"data\.dataset: the dataset cannot be"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_named(data: Data, says: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    table(tmp_path / "d" / "train.parquet", [{"body": "x"}])
    write(tmp_path / "broken" / "train.parquet", b"PAR1 and nothing else")
    (tmp_path / "empty").mkdir()

    def read() -> list[str]:
        check_data(data, base=tmp_path)
        return list(documents(data, base=tmp_path, seed=0))

    with pytest.raises(LigoError, match=says):
        read()


def test_the_column_of_a_hub_dataset_may_stand_at_either_key(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"body": f"row {number}"} for number in range(5)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter(rows))
    for data in (
        Data(hub=Hub(id="org/name", column="body")),
        Data(hub=Hub(id="org/name", column="text"), column="body"),
    ):
        assert sorted(documents(data, base=Path("/"), seed=0)) == [row["body"] for row in rows]
