"""Tokenizers: trained, loaded and refused; nothing that a folder names is run or followed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from support.corpora import (
    STDLIB,
    Data,
    lines,
    not_installed,
    python,
    slices,
    trained,
    write,
)

from ligo_convert.data.tokenizers import check_tokenizer, load_tokenizer
from ligo_convert.data.train_tokenizer import train_tokenizer
from ligo_convert.errors import MissingExtra, RecipeError, SourceError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "bert", "roberta"])
def test_a_trained_tokenizer_is_read_by_transformers_with_the_same_ids(tmp_path: Path, model_type: str) -> None:
    import tokenizers
    import transformers

    files = train_tokenizer(
        STDLIB, base=tmp_path, vocabulary=300, seed=0, model_type=model_type, context=77, max_bytes=50_000
    )
    assert sorted(files) == ["tokenizer.json", "tokenizer_config.json"]
    for name, content in files.items():
        write(tmp_path / name, content)
    write(tmp_path / "config.json", json.dumps({"model_type": model_type}))
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "def caf\u00e9(x):\n\treturn '\u2603'  # don't\n"
    for special in (False, True):
        ids = loaded(text, add_special_tokens=special)["input_ids"]
        assert ids == plain.encode(text, add_special_tokens=special).ids or (special and model_type == "roberta")
    ids = plain.encode(text, add_special_tokens=False).ids
    if model_type == "bert":
        # WordPiece, uncased, gives back words, not spaces; a character that it does not know is lost.
        assert loaded.decode(ids) == "def cafe ( x ) : return ' [UNK] ' # don ' t"
    else:
        assert loaded.decode(ids) == text
    assert (len(loaded), loaded.model_max_length) == (300, 77)
    specials = {"bert": ("pad_token_id", 0), "roberta": ("pad_token_id", 1)}.get(model_type, ("eos_token_id", 0))
    assert getattr(loaded, specials[0]) == specials[1]
    if model_type in ("bert", "roberta"):
        assert loaded.mask_token_id == 4


@pytest.mark.parametrize("model_type", ["gpt2", "bert"])
@pytest.mark.slow
def test_training_gives_the_same_bytes_in_every_process_and_call(model_type: str) -> None:
    program = (
        "import hashlib; from pathlib import Path; from types import SimpleNamespace as N\n"
        "from ligo_convert.data.train_tokenizer import train_tokenizer\n"
        "data = N(text=None, hub=None, dataset=None, images=None, stdlib=True, column=None, format=None)\n"
        "for _ in range(2):\n"
        "    files = train_tokenizer(data, base=Path('/'), vocabulary=400, seed=0, context=64, max_bytes=100_000,"
        f" model_type={model_type!r})\n"
        "    print(hashlib.sha256(files['tokenizer.json'] + files['tokenizer_config.json']).hexdigest())\n"
    )
    done = [python(program, RAYON_NUM_THREADS=threads, PYTHONHASHSEED=threads) for threads in ("1", "2")]
    assert [one.stderr for one in done] == ["", ""]
    digests = [line for one in done for line in one.stdout.split()]
    assert len(digests) == 4
    assert len(set(digests)) == 1


def test_wordpiece_splits_words_into_what_it_has_learned(tmp_path: Path) -> None:
    # Three words, one of which has a letter that is too rare for a vocabulary of this size.
    write(tmp_path / "a.txt", "abab abc\n" * 500 + "abab xyz\n")
    made = train_tokenizer(Data(text=["*"]), base=tmp_path, vocabulary=17, seed=0, model_type="bert", context=8)
    model = json.loads(made["tokenizer.json"])["model"]
    assert list(model["vocab"])[:9] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##a"]
    assert {"abab", "abc"} <= set(model["vocab"])
    assert [token["content"] for token in json.loads(made["tokenizer.json"])["added_tokens"]] == list(model["vocab"])[
        :5
    ]


def test_training_reads_no_more_than_it_was_given(tmp_path: Path) -> None:
    # The last chunk is not text: it would be met if all were read.
    write(tmp_path / "a.txt", lines(40_000).encode() + b"\xff")
    files = train_tokenizer(
        Data(text=["*"]), base=tmp_path, vocabulary=300, seed=0, model_type="gpt2", context=64, max_bytes=100_000
    )
    assert b"endoftext" in files["tokenizer.json"]
    with pytest.raises(RecipeError, match="not UTF-8"):
        train_tokenizer(Data(text=["*"]), base=tmp_path, vocabulary=300, seed=0, model_type="gpt2", context=64)


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at least 257: 256 bytes and 1 special tokens"):
        train_tokenizer(STDLIB, base=tmp_path, vocabulary=256, seed=0, model_type="llama", context=64)


def test_training_without_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", " \n")
    with pytest.raises(RecipeError, match="no text to train a tokenizer on"):
        train_tokenizer(Data(text=["*"]), base=tmp_path, vocabulary=300, seed=0, model_type="llama", context=64)


def test_a_model_type_with_rules_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="reads differently beside a model of type qwen2"):
        train_tokenizer(STDLIB, base=tmp_path, vocabulary=300, seed=0, model_type="qwen2", context=64, max_bytes=50_000)


def test_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    write(tmp_path / "vocab.json", "{}")
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RecipeError, match="org/model: text needs a tokenizer, and there is none") as caught:
            check_tokenizer(folder, label="org/model")
    assert "fit.data.tokenizer" in str(caught.value)
    with pytest.raises(RecipeError, match="text needs a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.json", "merges.txt"], ["vocab.txt"]])
def test_files_that_make_a_tokenizer_pass(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        write(tmp_path / name, "")
    check_tokenizer(tmp_path, label="org/model")


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"])
def test_sentencepiece_alone_names_the_extra(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    not_installed(monkeypatch, "sentencepiece")
    write(tmp_path / name, b"\x0a\x0e")
    with pytest.raises(MissingExtra, match=rf"org/model: {name} needs the packages sentencepiece") as caught:
        check_tokenizer(tmp_path, label="org/model")
    assert "pip install 'ligo-convert[sentencepiece]'" in str(caught.value)
    assert caught.value.exit_code == 5
    write(tmp_path / "tokenizer.json", "{}")
    check_tokenizer(tmp_path, label="org/model")


def test_a_sentencepiece_model_is_read(tmp_path: Path) -> None:
    import sentencepiece

    write(tmp_path / "corpus" / "a.txt", lines(3000))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus" / "a.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=60,
        model_type="bpe",
        minloglevel=5,
    )
    write(tmp_path / "config.json", '{"model_type": "llama"}')
    write(tmp_path / "tokenizer_config.json", '{"tokenizer_class": "LlamaTokenizer"}')
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    loaded = load_tokenizer(tmp_path)
    assert loaded("a few words", add_special_tokens=False)["input_ids"] == plain.encode("a few words")
    assert slices(tmp_path / "corpus", tmp_path).test.blocks.shape == (10, 32)


def hostile(tokenizer: Path, folder: Path, **changes: dict[str, Any]) -> Path:
    """A copy of `tokenizer` with keys added to its JSON files, named with `__` for the dot."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        write(folder / name, (tokenizer / name).read_bytes())
    for key, values in changes.items():
        path = folder / key.replace("__", ".")
        content = json.loads(path.read_bytes()) if path.exists() else {}
        write(path, json.dumps({**content, **values}))
    return folder


def test_no_code_of_a_folder_runs_and_no_path_of_it_is_followed(tmp_path: Path, tokenizer: Path) -> None:
    canary = tmp_path / "canary"
    secret = str(write(tmp_path / "secret.json", "{}"))
    folder = hostile(
        tokenizer,
        tmp_path / "model",
        config__json={"auto_map": {"AutoConfig": "evil.Config"}, "tokenizer_file": secret},
        tokenizer_config__json={
            "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
            "fast_tokenizer_files": ["tokenizer.5.0.0/../../../secret.json"],
            "tokenizer_file": secret,
            "vocab_file": secret,
            "init_inputs": [secret],
            "chat_template": "{% for i in range(10**9) %}{% endfor %}",
        },
        special_tokens_map__json={"eos_token": "<|endoftext|>", "tokenizer_file": secret, "vocab_file": secret},
    )
    write(folder / "evil.py", f"open({str(canary)!r}, 'w')\nclass Config: pass\nclass Tokenizer: pass\n")
    opened: list[str] = []
    active = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    try:
        loaded = load_tokenizer(folder)
    finally:
        active = False
    assert loaded("text")["input_ids"] == load_tokenizer(tokenizer)("text")["input_ids"]
    assert loaded.chat_template is None
    assert loaded.name_or_path == str(folder)
    assert not canary.exists()
    assert opened
    assert not [path for path in opened if "secret" in path or "evil" in path]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "no JSON"),
        ("tokenizer.json", '{"version": "1.0"}', "the tokenizer cannot be loaded"),
        ("tokenizer_config.json", "{", "no JSON"),
        ("tokenizer_config.json", "[]", "no JSON object"),
        ("config.json", "[" * 100_000, "no JSON"),
    ],
)
def test_broken_tokenizer_files_are_named(
    tmp_path: Path, tokenizer: Path, name: str, content: str, message: str
) -> None:
    folder = hostile(tokenizer, tmp_path / "model")
    write(folder / name, content)
    with pytest.raises(SourceError, match=message) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    assert "ligo-tokenizer-" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    # The library asks the Hub about the first, and has an opinion about the second.
    [("mistral", "PreTrainedTokenizerFast"), ("llama", "LlamaTokenizer")],
)
@pytest.mark.slow
def test_loading_is_silent_and_asks_no_network(
    tmp_path: Path, tokenizer: Path, model_type: str, class_name: str
) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "def deny(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'): raise SystemExit(f'{event} {arguments}')\n"
        "sys.addaudithook(deny)\n"
        "from ligo_convert.data.tokenizers import load_tokenizer\n"
        "load_tokenizer(Path(sys.argv[1]))\n"
    )
    folder = hostile(
        tokenizer,
        tmp_path / "org" / "model",
        config__json={"model_type": model_type, "vocab_size": 200_000},
        tokenizer_config__json={"tokenizer_class": class_name},
    )
    done = python(program, str(folder))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
