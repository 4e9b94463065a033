"""Train a tokenizer on the text of a recipe, for a source model that is trained from scratch.

Input: the data section of a recipe.
Output: the files of the tokenizer.
"""

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

# The order sets the ids and must not change: BERT pads with id 0, and RoBERTa's position ids depend on padding id 1.
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

# The transformers classes that load these files without changing how the tokenizer splits text.
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
    """Train a tokenizer on shuffled text: WordPiece for BERT, DistilBERT and ELECTRA, byte-level BPE for all others.

    Args:
        data: the data section of the recipe.
        base: folder against which relative paths of the recipe resolve.
        vocabulary: maximum number of entries. A short text gives fewer.
        seed: seed of the order of the text.
        model_type: `model_type` of the model's config.json; selects the special tokens.
        context: longest sequence of the model, in tokens.
        max_bytes: bytes of text to train on, by default 6 MB. The last text is used whole.

    Returns:
        `tokenizer.json` and `tokenizer_config.json` as bytes. Equal text and arguments give equal bytes.

    Raises:
        RecipeError: the text is empty, the vocabulary is too small for the special tokens and the bytes or characters,
            or `AutoTokenizer` reads the files as a different tokenizer for this model type.
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
    """Train BERT's uncased tokenizer (Devlin et al., arXiv:1810.04805, section 3)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    def with_model(model: Any) -> Any:
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    unknown = BERT_TOKENS["unk_token"]
    untrained = with_model(models.WordPiece(unk_token=unknown))
    # Limit the alphabet to leave room for words. Rarer characters become [UNK].
    letters = _letters(untrained, texts, limit=min(1000, max(1, (vocabulary - len(special)) // 4)))
    # The trainer numbers the letters inside words in the order of a hash map with a new seed per call, and breaks ties between equally
    # frequent merges by these numbers. Passing the letters as special tokens fixes their numbers in advance.
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
    # Build a second tokenizer with this vocabulary, in which the letters are not special tokens.
    tokenizer = with_model(models.WordPiece(vocab=untrained.get_vocab(with_added_tokens=True), unk_token=unknown))
    tokenizer.add_special_tokens(special)
    first, last = BERT_TOKENS["cls_token"], BERT_TOKENS["sep_token"]
    ends = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1", special_tokens=ends
    )
    return tokenizer


def _letters(tokenizer: Any, texts: list[str], *, limit: int) -> list[str]:
    """Return the `limit` most frequent characters of words, then those that occur after a word's first character, prefixed with `##`.

    Each of the two groups is sorted.
    """
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
    """Check that the files, loaded for `model_type`, encode a sample as the trained tokenizer does.

    The tokenizer classes of some model types override rules in tokenizer.json.

    Raises:
        RecipeError: the ids differ.
    """
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
