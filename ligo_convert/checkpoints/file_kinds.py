"""The table of the files that stand beside a model's weights: which are carried into an output, and which are left behind, and why.

Input: names. Output: a `FileKind` for each. To treat another kind of file, add one line to `KINDS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ligo_convert.checkpoints.files import TOKENIZER_FILES

_MIB = 1 << 20

# carry: byte for byte. module: belongs to a sentence-transformers pipeline and is carried, or its sizes are rewritten, only with the whole
# of it. leave: left behind, and named. ignore: not a file of the model.
Action = Literal["carry", "module", "leave", "ignore"]


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """One kind of file.

    Attributes:
        what: what the file is.
        patterns: relative names with forward slashes. `*` matches within a folder, `**/` any number of folders, a last `**` everything.
        action: what is done with it.
        why: why it is left behind.
        limit: the largest file of this kind that is carried, in bytes.
        of_labels: whether it describes the classes of the head, so that it fits no head with other classes.
    """

    what: str
    patterns: tuple[str, ...]
    action: Action
    why: str = ""
    limit: int = 4 * _MIB
    of_labels: bool = False

    def matches(self, name: str) -> bool:
        # On a file system without case, a file in another case would take the place of a file of the output.
        return self._expression.fullmatch(name if self.action in ("carry", "module") else name.lower()) is not None

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        return re.compile("|".join(map(_expression, self.patterns)), re.DOTALL)


def _expression(pattern: str) -> str:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return "".join(parts.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*)", pattern))


def _cases(*stems: str) -> tuple[str, ...]:
    """Return patterns of text files whose names begin with a stem, in the three usual cases."""
    endings = ("", ".txt", ".md", ".rst", "*.txt", "*.md")
    cased = [case for stem in stems for case in (stem.upper(), stem.capitalize(), stem.lower())]
    return tuple(stem + ending for stem in cased for ending in endings)


_FOREIGN = "the weights of another framework: export the output again"
_EXPORT = "an export of the source's weights: export the output again"
_PICKLE = "pickled weights have the source's sizes, and loading them can run code"

# The first kind that matches a name decides.
KINDS: tuple[FileKind, ...] = (
    FileKind(
        what="bookkeeping of git and of the Hub's client",
        patterns=(".git", ".git/**", ".gitattributes", ".gitignore", ".cache/huggingface/**", ".huggingface/**"),
        action="ignore",
    ),
    FileKind(what="tokenizer", patterns=TOKENIZER_FILES, action="carry", limit=128 * _MIB),
    FileKind(what="generation config", patterns=("generation_config.json",), action="carry"),
    FileKind(
        what="tokenizer",
        patterns=(
            "tekken.json",
            "*.tiktoken",
            "normalizer.json",
            "vocab.bpe",
            "vocab.model",
            "bpe.model",
            "spm.model",
            "source.spm",
            "target.spm",
            "dict.txt",
            "emoji.txt",
        ),
        action="carry",
        limit=128 * _MIB,
    ),
    FileKind(what="chat template", patterns=("additional_chat_templates/*.jinja",), action="carry"),
    FileKind(
        what="processor config",
        patterns=("video_preprocessor_config.json", "image_processor_config.json", "feature_extractor_config.json"),
        action="carry",
    ),
    FileKind(
        what="licence or notice",
        patterns=(
            *_cases("license", "licence", "copying", "copyright", "notice", "patents", "authors", "third_party"),
            *_cases("use_policy", "acceptable_use", "terms_of_use", "prohibited_use"),
            "CITATION.cff",
            "LICENSES/*.txt",
            "licenses/*.txt",
        ),
        action="carry",
    ),
    FileKind(
        what="labels",
        patterns=(
            "labels.txt",
            "labels.json",
            "label_map.json",
            "label2id.json",
            "id2label.json",
            "label_mapping.json",
            "classes.txt",
            "class_names.txt",
            "imagenet_classes.txt",
            "imagenet_synsets.txt",
        ),
        action="carry",
        of_labels=True,
    ),
    FileKind(
        what="model card",
        patterns=("readme*",),
        action="leave",
        why="the output has a model card of its own, README.md",
    ),
    FileKind(
        what="record",
        patterns=("ligo/**",),
        action="leave",
        why="the record of an earlier growth; the output has its own",
    ),
    FileKind(
        what="training state",
        patterns=(
            "**/optimizer*",
            "**/scheduler*.pt",
            "**/scaler.pt",
            "**/rng_state*",
            "**/trainer_state.json",
            "**/training_args*",
            "**/training_state*",
            "checkpoint-*/**",
            "global_step*/**",
            "latest",
            "zero_to_fp32.py",
        ),
        action="leave",
        why="the state of the source's training",
    ),
    FileKind(
        what="export",
        patterns=(
            "onnx/**",
            "openvino/**",
            "coreml/**",
            "**/*.onnx",
            "**/*.onnx_data*",
            "**/*.mlpackage/**",
            "**/*.mlmodel",
            "**/*.gguf",
            "**/*.ggml",
            "**/*.engine",
            "**/openvino_*",
            "**/*.llamafile",
        ),
        action="leave",
        why=_EXPORT,
    ),
    FileKind(
        what="sentence-transformers",
        patterns=(
            "modules.json",
            "config_sentence_transformers.json",
            "sentence_*_config.json",
            "*/config.json",
            "*/model.safetensors",
        ),
        action="module",
        why="it belongs to no module of modules.json",
        limit=64 * _MIB,
    ),
    FileKind(
        what="adapter",
        patterns=("**/adapter_*", "**/lora_*.safetensors"),
        action="leave",
        why="an adapter for the source's sizes: merge it into the source first",
    ),
    FileKind(
        what="weights",
        patterns=("**/*.safetensors", "**/*.safetensors.index.json", "**/*.index.json"),
        action="leave",
        why="weights that are not those of config.json",
    ),
    FileKind(
        what="weights",
        patterns=tuple(
            f"**/*.{end}" for end in ("bin", "pt", "pth", "ckpt", "pkl", "pickle", "joblib", "npz", "npy", "distcp")
        ),
        action="leave",
        why=_PICKLE,
    ),
    FileKind(
        what="weights",
        patterns=tuple(
            f"**/*.{end}" for end in ("h5", "msgpack", "ot", "tflite", "pb", "keras", "data-00000-of-00001")
        ),
        action="leave",
        why=_FOREIGN,
    ),
    FileKind(
        what="code",
        patterns=tuple(
            f"**/*.{end}" for end in ("py", "pyc", "pyi", "ipynb", "sh", "so", "dll", "c", "cpp", "cu", "js")
        ),
        action="leave",
        why="code is never run and never carried",
    ),
    FileKind(
        what="pictures",
        patterns=tuple(
            f"**/*.{end}"
            for end in (
                "png",
                "jpg",
                "jpeg",
                "gif",
                "svg",
                "webp",
                "bmp",
                "mp4",
                "webm",
                "mov",
                "wav",
                "mp3",
                "pdf",
                "html",
            )
        ),
        action="leave",
        why="a picture or document about the source",
    ),
    FileKind(
        what="results",
        patterns=(
            "eval/**",
            "runs/**",
            "logs/**",
            "**/*.csv",
            "**/*.log",
            "**/events.out.*",
            "*_results.json",
            "*.tsv",
        ),
        action="leave",
        why="results of the source's training",
    ),
    FileKind(
        what="quantisation",
        patterns=("quant*_config.json", "quantize_config.json"),
        action="leave",
        why="sizes of the source",
    ),
    FileKind(what="hidden file", patterns=(".*", "**/.*"), action="leave", why="a hidden file"),
    FileKind(
        what="file", patterns=("**",), action="leave", why="no rule says what it is; copy it yourself if it still holds"
    ),
)


_CARRIED = re.compile(
    "|".join(_expression(pattern) for kind in KINDS if kind.action in ("carry", "module") for pattern in kind.patterns),
    re.DOTALL,
)


def kind_of(name: str) -> FileKind:
    """Return the kind of a file by its relative name. Every name has one."""
    return next(kind for kind in KINDS if kind.matches(name))


def may_be_carried(name: str) -> bool:
    """Return False for a name that is surely left behind. Faster than `kind_of`, for directories of very many files."""
    return _CARRIED.fullmatch(name) is not None
