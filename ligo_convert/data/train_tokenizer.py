"""Train a tokenizer on the text of a recipe, for sources that are trained from scratch."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ligo_convert.data.corpus import DataSection, documents, first_bytes
from ligo_convert.data.tokenizers import encoder, load_tokenizer
from ligo_convert.errors import RecipeError

TOKENIZER_TRAINING_BYTES = 6_000_000

# The order is the order of ids, and it is not free: BERT pads with id 0 and RoBERTa counts positions around id 1.
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}

ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}

SPECIAL_TOKENS = {
    "bert": BERT_TOKENS,
    "distilbert": BERT_TOKENS,
    "electra": BERT_TOKENS,
    "roberta": ROBERTA_TOKENS,
    "xlm-roberta": ROBERTA_TOKENS,
    "camembert": ROBERTA_TOKENS,
}

CAUSAL_TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}

# The library's classes that read such files back as they were trained.
_CLASSES = {"gpt2": "GPT2Tokenizer", "bert": "BertTokenizer", "roberta": "RobertaTokenizer"}


def train_tokenizer(
    data: DataSection,
    *,
    base: Path,
    vocabulary: int,
    seed: int,
    model_type: str,
    context: int,
    max_bytes: int = TOKENIZER_TRAINING_BYTES,
) -> dict[str, bytes]:
    """Train a tokenizer (BERT's WordPiece, byte-level BPE for all others) on the first `max_bytes` (default 6 MB) of shuffled text.

    Args:
        vocabulary: entries at most; little text fills fewer.
        model_type: the `model_type` of the config.json it will lie beside; decides the special tokens.
        context: the longest sequence the model takes, in tokens.

    Returns:
        `tokenizer.json` and `tokenizer_config.json` as bytes, the same for the same text and arguments.

    Raises:
        RecipeError: a vocabulary too small for bytes and special tokens; a model type beside which `AutoTokenizer`
            reads the files as another tokenizer.
    """
    special = SPECIAL_TOKENS.get(model_type, CAUSAL_TOKENS)
    names = list(dict.fromkeys(special.values()))
    wordpiece = special is BERT_TOKENS
    if not wordpiece and vocabulary < 256 + len(names):
        raise RecipeError(
            "the vocabulary is too small for a byte-level tokenizer",
            expected=f"at least {256 + len(names)}: 256 bytes and {len(names)} special tokens",
            found=vocabulary,
        )
    texts = list(first_bytes(documents(data, base=base, seed=seed), max_bytes))
    if not texts:
        raise RecipeError("no text to train a tokenizer on", where=base)
    train = _wordpiece if wordpiece else _byte_level_bpe
    tokenizer = train(texts, vocabulary=vocabulary, special=names)
    config = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "tokenizer_class": _CLASSES.get(model_type, "PreTrainedTokenizerFast"),
        **special,
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }
    _check_trained(files, tokenizer, model_type, texts[0][:4096])
    return files


def _byte_level_bpe(texts: list[str], *, vocabulary: int, special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def _wordpiece(texts: list[str], *, vocabulary: int, special: list[str]) -> Any:
    """BERT's tokenizer, uncased (Devlin et al., arXiv:1810.04805, section 3)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    def with_model(model: Any) -> Any:
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    unknown = BERT_TOKENS["unk_token"]
    untrained = with_model(models.WordPiece(unk_token=unknown))
    # Rare characters become [UNK]: the alphabet must leave room for words.
    letters = _letters(untrained, texts, limit=min(1000, max(1, (vocabulary - len(special)) // 4)))
    # The trainer numbers letters within words in the order of a hash map that is seeded anew by every call, and between merges that are
    # equally frequent it decides by number. Given as special tokens they have their numbers before it begins.
    fixed = [*special, *letters]
    if len(fixed) > vocabulary:
        raise RecipeError(
            "the vocabulary is too small for the characters of the text",
            expected=f"at least {len(fixed)}",
            found=vocabulary,
        )
    alphabet = [letter for letter in letters if len(letter) == 1]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=fixed,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    untrained.train_from_iterator(texts, trainer=trainer)
    # A tokenizer of its own, in which only what is special is.
    tokenizer = with_model(models.WordPiece(vocab=untrained.get_vocab(with_added_tokens=True), unk_token=unknown))
    tokenizer.add_special_tokens(special)
    first, last = BERT_TOKENS["cls_token"], BERT_TOKENS["sep_token"]
    ends = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1", special_tokens=ends
    )
    return tokenizer


def _letters(tokenizer: Any, texts: list[str], *, limit: int) -> list[str]:
    """The most frequent characters of words, and, behind `##`, those of them that stand within words; each kind in order."""
    words: Counter[str] = Counter()
    for text in texts:
        found = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        words.update(word for word, _ in found)
    counts: Counter[str] = Counter()
    within: set[str] = set()
    for word, count in words.items():
        for letter in word:
            counts[letter] += count
        within.update(word[1:])
    kept = sorted(sorted(counts, key=lambda letter: (-counts[letter], letter))[:limit])
    return [*kept, *(f"##{letter}" for letter in kept if letter in within)]


def _check_trained(files: Mapping[str, bytes], tokenizer: Any, model_type: str, sample: str) -> None:
    """Some model types bring a tokenizer class that puts its own rules over those in tokenizer.json."""
    with tempfile.TemporaryDirectory(prefix="ligo-tokenizer-") as scratch:
        for name, content in files.items():
            (Path(scratch) / name).write_bytes(content)
        (Path(scratch) / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        loaded = load_tokenizer(Path(scratch))
    sample += " don't\n\n\t x1234 \u00e9\u2603"
    if encoder(loaded)([sample])[0] != tokenizer.encode(sample, add_special_tokens=False).ids:
        raise RecipeError(
            f"a tokenizer trained here reads differently beside a model of type {model_type}",
            hint="name one in fit.data.tokenizer",
        )
