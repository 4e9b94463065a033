"""The schema of a family of models as data: its tensors, the meaning of their dims, and their sizes.

Input: a config as plain data. Output: the target's config, and rows, shapes and tensor lists. No torch, no weights.
The tables themselves are in `families/definitions/`, one file each, without functions. `families/inventory.py` matches a
checkpoint's tensors with a table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from ligo_convert.checkpoints.tensors import TensorSpec
from ligo_convert.errors import RecipeError, SourceError, brief, close_matches
from ligo_convert.families.library_names import ACTIVATIONS, ROPE_TYPES
from ligo_convert.families.notation import (
    Layout,
    NotationError,
    SizeError,
    depth_axis,
    evaluate,
    expand,
    first_layer,
    matcher,
    name_at,
    paired_keys,
    parse_layouts,
    size_keys,
)
from ligo_convert.limits import LABELS, LAYERS, TENSORS

Config = Mapping[str, object]


Task = Literal[
    "causal-lm",
    "masked-lm",
    "encoder",
    "decoder",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "image-classification",
    "image-encoder",
    "text-to-text",
]


# Task -> the class of transformers that loads a checkpoint of it.
AUTO_CLASSES: Mapping[Task, str] = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "encoder": "AutoModel",
    "decoder": "AutoModel",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "text-to-text": "AutoModelForSeq2SeqLM",
}

# Stands in a pattern for the number of an expert.
EXPERT = "{expert}"

# Config keys from which the libraries make a name for every class, whether or not the model has a classifier.
_LABEL_KEYS = ("num_labels", "num_classes")

# Config keys that name the classes, in transformers.
_NAMES_OF_LABELS = ("id2label", "label2id")

# Tasks of models without a head, whose output is their last hidden states.
HEADLESS: tuple[Task, ...] = ("encoder", "decoder", "image-encoder")

# Tasks of models that read images; all others read text.
IMAGES: tuple[Task, ...] = ("image-classification", "image-encoder")

# Tasks without a loss on plain text or images: their operator is fitted by comparing outputs with the source's.
WITHOUT_LOSS: tuple[Task, ...] = (
    *HEADLESS,
    "sequence-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "text-to-text",
)

# Tasks whose text is never masked: a token sees only those before it, or a decoder reads the text again.
CAUSAL: tuple[Task, ...] = ("causal-lm", "decoder", "text-to-text")


# Kind of rotary positions in transformers -> keys of its parameters. Where one key of each group is given, `max_position_embeddings`
# enters no computation. Kinds that are not listed always compute with it.
READ_LIMIT: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "default": (),
    "linear": (),
    "llama3": (("original_max_position_embeddings",),),
    "yarn": (("original_max_position_embeddings",), ("factor",)),
    "longrope": (("original_max_position_embeddings",), ("factor", "attention_factor")),
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """A model class of the library for this family: the parts of a checkpoint it has, and its task.

    Attributes:
        parts: the parts of the table (`in PART`) that the class has, besides the rows that every class has.
        task: what the class is trained for.
        architecture: the class name in config.json.
        auto_class: the library's class that loads it; "" for the usual one of its task (`AUTO_CLASSES`).
        base: True for the model without a head, which omits the family's prefix from tensor names.
        prefix: what stands in tensor names of this class instead of the family's prefix; "" for that prefix itself.
        options: keyword arguments of the constructor.
    """

    parts: tuple[str, ...] = ()
    task: Task
    architecture: str
    auto_class: str = ""
    base: bool = False
    prefix: str = ""
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def name(self) -> str:
        """The class with its constructor's arguments, such as `BertModel(add_pooling_layer=False)`."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.architecture}({arguments})" if arguments else self.architecture

    @property
    def loaded_by(self) -> str:
        """The library's class that loads a checkpoint of this class; "" in timm, which has none."""
        return self.auto_class or AUTO_CLASSES.get(self.task, "")


def classes(heads: tuple[Head, ...], old: str, new: str, *, without: Collection[str] = ()) -> tuple[Head, ...]:
    """Return the classes of another family for a family whose class names begin with `new` instead of `old`.

    Args:
        without: tasks for which the library has no class of this family.

    >>> [head.architecture for head in classes((Head(task="causal-lm", architecture="LlamaForCausalLM"),), "Llama", "Arcee")]
    ['ArceeForCausalLM']
    """
    assert all(head.architecture.startswith(old) for head in heads), old
    return tuple(
        replace(head, architecture=new + head.architecture.removeprefix(old))
        for head in heads
        if head.task not in without
    )


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The normalisation of the residual stream.

    Norms are named by their module: the row's pattern without `.weight` and `.bias`.

    Attributes:
        stream: the residual stream.
        kind: LayerNorm or RMSNorm.
        epsilon: config key of the epsilon; "" if the library fixes it in its code.
        affine: False if the norms have no gain and no shift.
        head: the norm before the head; alternatives `(a|b)` where conditions leave one of them.
        placement: `pre`, before each branch, or `post`, after the branch has been added to the stream.
        after_embeddings: the norm of the embeddings, whose output is the residual stream; post-norm, and pre-norm where there is one.
        after_attention: post-norm only: the norm after the attention branch.
        after_mlp: post-norm only: the norm after the MLP branch.
        summed_streams: streams that only a norm (and a tied head) reads, such as sums of embeddings: any linear map is allowed there.
        activated_streams: streams that a norm reads directly from an activation: no linear map acts between the two. Also streams that
            a head reads without a norm, beside a norm that reads them: their entries keep their scale.
        beside: streams as wide as the residual stream that linear maps write and a norm of their own reads, such as the output of an
            attention pool. They grow by the same maps, but methods that rewrite the source's tensors do not keep them.
        inner: stream -> the axes over which another norm of the same kind and epsilon runs: the head size where each head of the queries
            is normalised, all factors where the queries are normalised as a whole.
    """

    stream: str
    kind: Literal["layernorm", "rmsnorm"]
    epsilon: str
    head: str
    affine: bool = True
    placement: Literal["pre", "post"] = "pre"
    after_embeddings: str = ""
    after_attention: str = ""
    after_mlp: str = ""
    summed_streams: tuple[str, ...] = ()
    activated_streams: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    inner: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def place(self) -> Literal["pre", "post", "embedded"]:
        """Where the norms of the residual stream are, for `growth.width_methods`."""
        return "embedded" if self.placement == "pre" and self.after_embeddings else self.placement

    @property
    def axes(self) -> frozenset[str]:
        """The axes whose entries a norm reads together: the residual stream's, and those of `inner`."""
        return frozenset((self.stream, *(axis for axes in self.inner.values() for axis in axes)))


@dataclass(frozen=True, kw_only=True)
class LayerRule:
    """How the library fills in a list with one entry per layer where the config has none: every n-th layer is of another kind.

    Attributes:
        every: size expression of n.
        begin: number of the first layer in this count.
        nth: the entry of every n-th layer.
        others: the entry of the other layers.
    """

    every: str
    nth: object
    others: object
    begin: int = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a family's table with its alternatives expanded: a name pattern and a layout.

    Attributes:
        expert: True if the row is that of one expert, which only some of the tokens pass.
    """

    pattern: str
    layout: Layout
    expert: bool = False

    @property
    def depth(self) -> str | None:
        return depth_axis(self.pattern)

    @property
    def first(self) -> int:
        """The first layer that has the row."""
        return first_layer(self.pattern)

    def index(self, layer: int | None) -> int:
        """The position of a layer among those that have the row; 0 for a row without a depth axis."""
        return 0 if layer is None else layer - self.first

    @property
    def module(self) -> str:
        """The pattern without `.weight` or `.bias`."""
        return self.pattern.rpartition(".")[0]

    def name(self, layer: int | None) -> str:
        return name_at(self.pattern, layer)

    def present(self, config: Config) -> bool:
        """Return whether a model of `config` has this row, provided that it has the row's part."""
        return self.layout.failing(config) is None

    def piece_keys(self) -> tuple[str, ...]:
        """The names of the depth matrices, one for each unfused piece: the pattern, or `pattern/part`."""
        return tuple(f"{self.pattern}/{label}" if label else self.pattern for label, _ in self.layout.pieces())


@dataclass(frozen=True, kw_only=True)
class Training:
    """A published training from scratch, quoted in the model card of a grown model.

    Attributes:
        parameters: number of parameters of the model; of one of them if the recipe trained several.
        rate: peak learning rate.
        batch: batch size that the rate belongs to.
        warmup: length of the warm-up.
        decay: weight decay of AdamW.
        paper: name and address of the paper.
    """

    parameters: float
    rate: float
    batch: str
    warmup: str
    decay: float
    paper: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """A table of tensors, and the properties of the model around them that the growth mathematics needs.

    A module pattern below is a name pattern without `.weight` and `.bias`.

    Attributes:
        name: the name used in this program.
        model_type: the `model_type` in config.json.
        other_names: the `model_type` of models that the library implements by the same tensors and the same computation.
        heads: the library's classes of this family, the usual one first.
        axes: axis -> size expression over config keys.
        streams: stream -> product of axes, slowest first.
        tensors: name pattern -> layout.
        norm: the normalisation of the residual stream.
        defaults: config key -> the library's default.
        defaults_from: config key -> the key whose value the library takes for it where it is missing.
        library: the library that builds and loads the models.
        head: the class that this family is narrowed to; None for the usual one.
        vocabulary: the axis of token ids; "" if there is none.
        positions: the axis of learned positions; "" if there is none.
        position_offset: size expression of the number of positions that are never used; "" for none.
        labels: the axis of classes; "" if there is none.
        lookup_axes: axes that index a table of vectors instead of taking part in a matrix product.
        pooled: module patterns applied to one token of each sequence.
        optional_prefix: leading part of tensor names that some checkpoints omit.
        wrappers: leading parts of tensor names that training wrappers add and the library's loader strips, in its order.
        renamed: last parts of a tensor name in old checkpoints (`LayerNorm.gamma`) -> their present names, as the library's loader
            renames them.
        in_model: parameter of the library's model -> what it is made of, where the model's names or forms are not those of its files: the
            pattern of a row, `PATTERN/PART` for a part of a fused row (of its first dim), several joined by ` + ` along the first dim.
            Rows with `{expert}` are stacked. Alternatives `(a|b)` on both sides stand for each other in order.
        experts: the axis of the experts that `{expert}` in a pattern counts; "" if there are none.
        experts_used: size expression of the number of experts that a token passes.
        expert_count: number of experts that the rows of the table are for (`with_experts`).
        tied: alias -> canonical pattern, in effect if the config key `tie_key` is true.
        tie_key: config key that ties the patterns of `tied`.
        ignored: patterns of tensors that some checkpoints store and the library's loader passes over, such as buffers.
        flattened: patterns of rows that the library's loader also takes with fewer dims: the first dim as it is, the others in one.
        resampled: patterns of rows that the library's loader interpolates to the sizes in the config. The table takes them only at
            those sizes.
        residual_outputs: module patterns of the last projection of each residual branch, in the order of the branches; of the norm behind
            it, where a norm follows. Depth growth by `identity` sets them to zero in new layers. A norm is silenced at its gain: zero
            weights in front of it would have gradients of 1 / sqrt(epsilon).
        layer_scales: residual output -> pattern of the LayerScale that multiplies it.
        width_factors: pattern of a row -> (axis, power): the library multiplies what the row gives by the axis's size to that power, as
            Gemma does with its embeddings. Growth divides the row by the change of the factor. That of a tied alias is in effect while it
            is tied.
        never_grown: axes that cannot grow.
        rotary_axes: axes along which rotary positions are encoded; their size and order cannot change.
        dot_products: pairs of streams multiplied in a scaled dot product. The scale is 1/sqrt(head size).
        scale_key: config key that must be true for that scale to apply; "" if it always applies.
        content_of: stream -> the stream with the same content, for the ties between maps in the LiGO paper (arXiv:2303.00980).
        integer_expressions: expressions that the library requires to be integers.
        required_values: config key -> the only value for which this table is valid; a tuple for several.
        per_layer_keys: config key of a list with one entry per layer -> depth axis.
        layer_rules: a key of `per_layer_keys` -> how the library fills in its list.
        layer_index_keys: config keys that make a layer depend on its index.
        function_irrelevant_keys: config keys that do not change the function of a trained model at inference.
        rotary_limit: config key of the most positions of rotary position embeddings; "" if there is none. Only the kinds of rotary
            positions in `READ_LIMIT` compute with it.
        conditional_keys: config key -> keys that have no effect while it is false.
        activation: config key of the activation's name; "" if the library fixes it.
        rope_types: kinds of rotary positions that the library accepts, where it does not accept all that it knows.
        initializer: standard deviation of the library's initialisation: a config key, or a number.
        root_init: pattern of a row -> streams: its deviation is one over the root of the product of their sizes.
        residual_init: patterns of rows initialised with that deviation divided by sqrt(2 * layers).
        scale_init: config key of a LayerScale's initial value.
        architectures: name of a complete config (timm) -> the values it sets on top of `defaults`.
        published: name of a published model -> the config keys that decide its size, as its config.json has them. `init` offers them as
            targets; for timm it offers `architectures`.
        paper: the paper of the architecture, as BibTeX.
        trained: published trainings from scratch; empty if none is known.
    """

    name: str
    model_type: str
    heads: tuple[Head, ...]
    axes: Mapping[str, str]
    streams: Mapping[str, str]
    tensors: Mapping[str, str]
    norm: Norm
    defaults: Mapping[str, object]
    defaults_from: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    other_names: tuple[str, ...] = ()
    library: Literal["transformers", "timm"] = "transformers"
    head: Head | None = None
    vocabulary: str = "vocab"
    positions: str = ""
    position_offset: str = ""
    labels: str = ""
    lookup_axes: tuple[str, ...] = ("vocab", "position")
    pooled: tuple[str, ...] = ()
    optional_prefix: str = ""
    wrappers: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    in_model: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    experts: str = ""
    experts_used: str = ""
    expert_count: int = 1
    tied: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tie_key: str = "tie_word_embeddings"
    ignored: tuple[str, ...] = ()
    flattened: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    residual_outputs: tuple[str, ...] = ()
    layer_scales: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    width_factors: Mapping[str, tuple[str, float]] = field(default_factory=lambda: MappingProxyType({}))
    never_grown: tuple[str, ...] = ()
    rotary_axes: tuple[str, ...] = ()
    dot_products: tuple[tuple[str, str], ...] = ()
    scale_key: str = ""
    content_of: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    integer_expressions: tuple[str, ...] = ()
    required_values: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    per_layer_keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    layer_rules: Mapping[str, LayerRule] = field(default_factory=lambda: MappingProxyType({}))
    layer_index_keys: tuple[str, ...] = ()
    function_irrelevant_keys: tuple[str, ...] = ()
    rotary_limit: str = ""
    conditional_keys: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    activation: str = ""
    rope_types: tuple[str, ...] = ()
    initializer: str | float = "initializer_range"
    root_init: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    residual_init: tuple[str, ...] = ()
    scale_init: str = ""
    architectures: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: MappingProxyType({}))
    published: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: MappingProxyType({}))
    paper: str = ""
    trained: tuple[Training, ...] = ()

    # The library's class.

    @property
    def chosen(self) -> Head:
        return self.head or self.heads[0]

    @property
    def task(self) -> Task:
        return self.chosen.task

    @property
    def architecture(self) -> str:
        return self.chosen.architecture

    @property
    def auto_class(self) -> str:
        """The library's class that loads a model of the chosen class."""
        return self.chosen.loaded_by

    @property
    def reads(self) -> Literal["text", "images"]:
        return "images" if self.task in IMAGES else "text"

    def sequence(self, config: Config, length: int) -> int:
        """Tokens of one example: `length` for text, the number of positions for an image."""
        return self.sizes(config)[self.positions] if self.reads == "images" else length

    def class_count(self, config: Config) -> int | None:
        """The number of classes of the chosen class's head; None if it has no such head."""
        return self.sizes(config)[self.labels] if self.labels in self.class_axes else None

    def for_head(self, head: Head) -> Family:
        """Narrow the family to the rows of one class."""
        assert head in self.heads, head
        return replace(self, head=head)

    def for_architecture(self, name: object) -> Family:
        """Narrow the family to the class with this name or architecture; to the usual class if there is none."""
        matches = [head for head in self.heads if head.name == name]
        matches += [head for head in self.heads if head.architecture == name]
        return self.for_head(matches[0] if matches else self.heads[0])

    def with_experts(self, config: Config) -> Family:
        """Return the family with a row for each expert of a model of `config`. Raises SizeError."""
        if not self.experts:
            return self
        return replace(self, expert_count=evaluate(self.axes[self.experts], self.complete(config)))

    def of_each_expert(self, pattern: str) -> tuple[str, ...]:
        """Return a pattern with the number of each expert in place of `{expert}`."""
        if EXPERT not in pattern:
            return (pattern,)
        return tuple(pattern.replace(EXPERT, str(number)) for number in range(self.expert_count))

    def for_config(self, config: Config) -> Family:
        """Narrow the family to a class that a config allows: the chosen one if it does, else the first that does.

        transformers names the class beside the sizes, and its configs allow every class. In timm `num_classes` decides.
        """
        allowed = self.heads_for(config)
        return self if self.chosen in allowed else self.for_head(allowed[0])

    def heads_for(self, config: Config) -> tuple[Head, ...]:
        """The classes that a config allows: all that agree with it on the parts whose every row has a condition."""
        decided = {part for part, rows in self._parts.items() if all(row.layout.conditions for row in rows)}
        there = decided - self._absent_parts(config)
        return tuple(head for head in self.heads if decided.intersection(head.parts) == there) or self.heads

    @cached_property
    def _parts(self) -> Mapping[str, tuple[Row, ...]]:
        """Part -> its rows."""
        parts = dict.fromkeys(row.layout.part for row in self.table if row.layout.part)
        return {part: tuple(row for row in self.table if row.layout.part == part) for part in parts}

    def _absent_parts(self, config: Config) -> set[str]:
        """The parts of which a config calls for no row."""
        complete = self.complete(config)
        return {part for part, rows in self._parts.items() if not any(row.present(complete) for row in rows)}

    def written(self, name: str) -> str:
        """Convert a canonical tensor name to the name in the chosen class."""
        bare = name.removeprefix(self.optional_prefix)
        if self.chosen.base or (self.chosen.prefix and bare != name):
            return self.chosen.prefix + bare
        return name

    # The table, expanded and checked for consistency.

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the chosen class."""
        return tuple(row for row in self.table if not row.layout.part or row.layout.part in self.chosen.parts)

    @cached_property
    def table(self) -> tuple[Row, ...]:
        """The rows of all classes. Raises NotationError if the table is inconsistent."""
        rows = tuple(
            Row(pattern=name, layout=layout, expert=EXPERT in alternative)
            for pattern, text in self.tensors.items()
            for layout in parse_layouts(text)
            for alternative in expand(pattern)
            for name in self.of_each_expert(alternative)
        )
        known = {*self.axes, *self.streams, "1"}
        parts = {part for head in self.heads for part in head.parts}
        for row in rows:
            for stream in row.layout.streams:
                if stream not in known:
                    raise NotationError(f"{self.name}: {row.pattern}: {stream!r} is neither an axis nor a stream")
            if row.layout.part and row.layout.part not in parts:
                raise NotationError(f"{self.name}: {row.pattern}: no head has the part {row.layout.part!r}")
            if row.depth is not None and row.depth not in self.axes:
                raise NotationError(f"{self.name}: {row.pattern}: {row.depth!r} is not an axis")
        for head in self.heads:
            own = [row.pattern for row in rows if row.layout.part in ("", *head.parts)]
            twice = next((pattern for pattern, count in Counter(own).items() if count > 1), None)
            if twice is not None:
                raise NotationError(f"{self.name}: {head.name} has two rows of the pattern {twice}")
        return rows

    @cached_property
    def depth_axes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.depth for row in self.rows if row.depth is not None))

    @cached_property
    def class_axes(self) -> tuple[str, ...]:
        """The axes of the chosen class: all but those that only rows of other classes have, such as the classes of a classifier."""
        own, all_of_them = (
            {axis for row in rows for stream in row.layout.streams for axis in self.factors(stream)}
            for rows in (self.rows, self.table)
        )
        return tuple(axis for axis in self.axes if axis in own or axis not in all_of_them)

    @cached_property
    def global_streams(self) -> frozenset[str]:
        """Streams that occur in a row without a depth axis: all layers share one map."""
        return frozenset(stream for row in self.rows if row.depth is None for stream in row.layout.streams)

    @cached_property
    def size_keys(self) -> tuple[str, ...]:
        """The config keys that determine sizes."""
        return tuple(dict.fromkeys(key for expression in self.axes.values() for key in size_keys(expression)))

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """The config keys that name the classes, and that decide their number; empty if none do."""
        return _NAMES_OF_LABELS if set(_NAMES_OF_LABELS) & set(self.size_keys) else ()

    @cached_property
    def config_keys(self) -> frozenset[str]:
        """The config keys that this definition names."""
        named = {*self.defaults, *self.size_keys, *self.required_values, *self.per_layer_keys, *self.layer_index_keys}
        named |= {*self.conditional_keys, *self.function_irrelevant_keys, *self.label_names}
        named |= {*size_keys(self.experts_used)}
        named |= {self.norm.epsilon, self.tie_key, self.scale_key, self.scale_init, self.activation}
        return frozenset(named - {""})

    @cached_property
    def paired_keys(self) -> frozenset[str]:
        """The config keys that may be a pair: those of which a size expression takes one entry."""
        return frozenset(key for expression in self.axes.values() for key in paired_keys(expression))

    @cached_property
    def roles(self) -> Mapping[str, frozenset[str]]:
        """Stream -> the roles it has in the table: written, read, scaled or shifted."""
        return _roles(self.rows)

    def roles_for(self, config: Config) -> Mapping[str, frozenset[str]]:
        """`roles`, restricted to the rows of a model of `config`: a tied head is not a row of its own and reads nothing."""
        return _roles(self.rows_for(config))

    def factors(self, stream: str) -> tuple[str, ...]:
        """The axes whose product is the stream, slowest first."""
        return tuple(self.streams[stream].split("*")) if stream in self.streams else (stream,)

    @cached_property
    def residual_output_modules(self) -> tuple[str, ...]:
        """`residual_outputs` with alternatives expanded, in the order of the branches."""
        return tuple(
            name
            for end in self.residual_outputs
            for alternative in expand(end)
            for name in self.of_each_expert(alternative)
        )

    @cached_property
    def _residual_init(self) -> frozenset[str]:
        return frozenset(name for pattern in self.residual_init for name in expand(pattern))

    @cached_property
    def pooled_modules(self) -> frozenset[str]:
        """`pooled` with alternatives expanded: modules, and tensors without a module, applied to one token of each sequence."""
        return frozenset(name for pattern in self.pooled for name in expand(pattern))

    @cached_property
    def _pooled_streams(self) -> frozenset[str]:
        """Streams that only pooled modules write."""
        written: dict[str, set[str]] = {}
        for row in self.rows:
            for dim in row.layout.dims:
                for part in dim.parts if dim.role == "write" else ():
                    written.setdefault(part, set()).add(row.module)
        return frozenset(stream for stream, modules in written.items() if modules <= self.pooled_modules)

    def is_pooled(self, row: Row) -> bool:
        """Whether a row acts on one token of each sequence: a pooled module, or what reads nothing but the output of one."""
        reads = {part for dim in row.layout.dims if dim.role == "read" for part in dim.parts}
        return row.module in self.pooled_modules or (bool(reads) and reads <= self._pooled_streams)

    def is_residual_output(self, row: Row) -> bool:
        return row.module in self.residual_output_modules

    def is_post_norm(self, row: Row) -> bool:
        """Whether `row` belongs to a norm that follows the sum of a residual branch and its skip connection (post-norm models)."""
        return self.norm.placement == "post" and row.module in (self.norm.after_attention, self.norm.after_mlp)

    @cached_property
    def _root_init(self) -> Mapping[str, tuple[str, ...]]:
        return {name: streams for pattern, streams in self.root_init.items() for name in expand(pattern)}

    def root_of(self, row: Row) -> tuple[str, ...]:
        """The streams whose sizes decide the deviation of a row that is initialised by them; empty for any other row."""
        return self._root_init.get(row.pattern, ())

    def has_residual_init(self, row: Row) -> bool:
        return row.pattern in self._residual_init

    def scale_row(self, row: Row, config: Config) -> Row | None:
        """The row of the LayerScale that multiplies the output of `row`; None if a model of `config` has none."""
        pattern = self.layer_scales.get(row.module)
        scale = next((scale for scale in self.rows if scale.pattern == pattern), None) if pattern else None
        return scale if scale is not None and scale.present(self.complete(config)) else None

    def is_scale(self, row: Row) -> bool:
        return any(dim.role == "scale" for dim in row.layout.dims)

    def feeds_head(self, row: Row) -> bool:
        return row.module in self._head_norms

    @cached_property
    def _head_norms(self) -> tuple[str, ...]:
        return expand(self.norm.head)

    def width_change(self, pattern: str, old: Mapping[str, int], new: Mapping[str, int]) -> float:
        """By how much the factor changes by which the library multiplies what a row gives; 1 if there is no such factor.

        Args:
            old, new: sizes of the source and of the target.
        """
        axis, power = self.width_factors.get(pattern, ("", 0.0))
        return float((new[axis] / old[axis]) ** power) if axis else 1.0

    def norms(self, sizes: Mapping[str, int]) -> int:
        """The number of norms on the residual stream in a model of these sizes."""
        gains = [
            row for row in self.rows if row.layout.dims[0].role == "gain" and self.norm.stream in row.layout.streams
        ]
        return sum(sizes[row.depth] - row.first if row.depth else 1 for row in gains)

    def layer_list(self, config: Config, key: str) -> list[object] | None:
        """Return a list with one entry per layer: the config's, or the one that the library fills in; None if there is neither."""
        given, rule = config.get(key), self.layer_rules.get(key)
        if isinstance(given, list) or rule is None:
            return given if isinstance(given, list) else None
        complete = self.complete(config)
        every = evaluate(rule.every, complete)
        layers = range(self.sizes(config)[self.per_layer_keys[key]])
        return [rule.others if (layer + rule.begin) % every else rule.nth for layer in layers]

    # Sizes.

    def complete(self, config: Config) -> dict[str, object]:
        """`config` with the library's defaults for missing keys."""
        complete = {**self.defaults, **config}
        complete.update({key: complete.get(other) for key, other in self.defaults_from.items() if key not in config})
        return complete

    def sizes(self, config: Config) -> dict[str, int]:
        """Axis and stream -> size. Raises SizeError."""
        complete = self.complete(config)
        zero = {*self.depth_axes, *self._conditional_axes}
        sizes = {axis: evaluate(expression, complete, zero=axis in zero) for axis, expression in self.axes.items()}
        for expression in self.integer_expressions:
            evaluate(expression, complete)
        self._offset(config)
        for stream in self.streams:
            size = 1
            for axis in self.factors(stream):
                size *= sizes[axis]
            sizes[stream] = size
        self._check_limits(config, sizes)
        return sizes

    @cached_property
    def _conditional_axes(self) -> frozenset[str]:
        """The axes that may be zero: those whose every row exists only if a config key of the axis is true."""
        found: dict[str, bool] = {}
        for row in self.table:
            keys = {
                condition.key
                for condition in row.layout.conditions
                if condition.value is None and not condition.negated
            }
            for axis in {axis for stream in row.layout.streams for axis in self.factors(stream)} & {*self.axes}:
                own = self.axes[axis] in keys
                found[axis] = found.get(axis, True) and own
        return frozenset(axis for axis, own in found.items() if own)

    @cached_property
    def _rows_per_layer(self) -> Mapping[str, int]:
        """Depth axis -> number of rows of the table that have it."""
        return Counter(row.depth for row in self.table if row.depth is not None)

    def _check_limits(self, config: Config, sizes: Mapping[str, int]) -> None:
        """Raise SizeError for sizes that no model has. Every list of layers, tensors or classes is made after this check."""
        for axis in self._rows_per_layer:
            if sizes[axis] > LAYERS.most:
                raise SizeError(f"{self.axes[axis]} is {sizes[axis]:,}, and must be {LAYERS}")
        for key in _LABEL_KEYS:
            value = config.get(key)
            if isinstance(value, int) and value > LABELS.most:
                raise SizeError(f"{key} is {brief(value)}, and must be {LABELS}")
        tensors = sum(rows * sizes[axis] for axis, rows in self._rows_per_layer.items())
        if tensors > TENSORS.most:
            depths = " and ".join(f"{self.axes[axis]} = {sizes[axis]:,}" for axis in self._rows_per_layer)
            raise SizeError(f"{depths} gives {tensors:,} tensors, and must give {TENSORS}")

    def longest(self, config: Config) -> int | None:
        """The longest sequence that learned positions allow; None if there is no limit."""
        positions = self.sizes(config).get(self.positions)
        if positions is None or self.reads == "images":
            return None
        return positions - self._offset(config)

    def _offset(self, config: Config) -> int:
        return evaluate(self.position_offset, self.complete(config)) if self.position_offset else 0

    def shape(self, row: Row, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(sum(sizes.get(part, 1) for part in dim.parts) for dim in row.layout.dims)

    def layers(self, row: Row, config: Config) -> range | tuple[None]:
        return (None,) if row.depth is None else range(row.first, self.sizes(config)[row.depth])

    def is_tied(self, config: Config) -> bool:
        """Return whether a model of `config` and of the chosen class has a tied alias: a class without a head has none."""
        return any(row.pattern in self.tied for row in self.rows) and bool(self.complete(config).get(self.tie_key))

    def parameters(self, rows: Iterable[Row], config: Config) -> int:
        """The number of parameters in `rows` at the sizes of `config`."""
        return sum(spec.elements for _, _, spec in self.tensors_of(rows, config, dtype="F32"))

    def tensors_of(
        self, rows: Iterable[Row], config: Config, *, dtype: str
    ) -> Iterator[tuple[Row, int | None, TensorSpec]]:
        """Yield the tensors of `rows` at the sizes of `config`: row, layer and spec, in table order, then by layer."""
        sizes = self.sizes(config)
        for row in rows:
            shape = self.shape(row, sizes)
            for layer in (None,) if row.depth is None else range(row.first, sizes[row.depth]):
                yield row, layer, TensorSpec(name=row.name(layer), dtype=dtype, shape=shape)

    def rows_for(self, config: Config) -> tuple[Row, ...]:
        """The rows of a model of `config` and of the chosen class, without tied aliases."""
        complete = self.complete(config)
        tied = set(self.tied) if self.is_tied(config) else set()
        return tuple(row for row in self.rows if row.present(complete) and row.pattern not in tied)

    # Sources.

    def wrong_value(self, config: Config) -> tuple[str, str] | None:
        """Return the first key whose value the library cannot read, and what is expected there; None if there is none.

        Only what needs no library is checked here. The library itself reads the config before any work starts.
        """
        for key, default in self.defaults.items():
            value = config.get(key, default)
            paired = key in self.paired_keys and isinstance(value, list | tuple) and len(value) == 2
            for entry in value if paired else (value,):  # type: ignore[attr-defined]
                if entry is not None and default is not None and not _is_like(entry, default):
                    return key, _KINDS[type(default)] + (", or a pair of them" if key in self.paired_keys else "")
        for key, value in config.items():
            ids = value if isinstance(value, list) else [value]
            if key.endswith("_token_id") and any(item is not None and type(item) is not int for item in ids):
                return key, "a token id"
        activation = config.get(self.activation, ACTIVATIONS[0])
        if self.activation and activation not in ACTIVATIONS:
            near = close_matches(str(activation), ACTIVATIONS, n=3) or ACTIVATIONS[:3]
            return self.activation, f"an activation of transformers, such as {', '.join(near)}"
        known = self.rope_types or ROPE_TYPES
        for key in ("rope_scaling", "rope_parameters") if self.rotary_axes else ():
            value = config.get(key)
            if value is not None and not isinstance(value, Mapping):
                return key, "a mapping"
            kinds = _rope_kinds(value or {})
            if any(kind not in known for kind in kinds):
                return key, f"rope_type: one of {', '.join(known)}"
        return None

    def check_config(self, config: Config, *, where: str) -> None:
        """Raise SourceError if this table is not valid for a config."""
        for key in self.required_values:
            if key in config and not self._allows(key, config[key]):
                raise SourceError(
                    f"{self.name} with {key} = {brief(config[key])} is not supported",
                    where=where,
                    expected=f"{key} = {' or '.join(map(repr, self._required(key)))}",
                )
        try:
            self.sizes(config)
        except SizeError as error:
            raise SourceError(f"the sizes of this {self.name} do not fit: {error}", where=where) from None
        wrong = self.wrong_value(config)
        if wrong is not None:
            key, expected = wrong
            raise SourceError(
                f"{key}: not a value of a {self.name}", where=where, expected=expected, found=brief(config[key])
            )

    def unwrapped(self, name: str) -> str:
        """A tensor name on disk without the leading parts that training wrappers add."""
        for wrapper in self.wrappers:
            name = name.removeprefix(wrapper)
        return name

    def canonical(self, name: str, wanted: Container[str]) -> str | None:
        """The canonical name of a tensor on disk, read as the library's loader reads it; None if it is not in `wanted`.

        The name on disk may have a wrapper's prefix, lack or add the family's own prefix, or end as in old checkpoints.
        """
        name = self.unwrapped(name)
        names = [name, *(name.removesuffix(old) + new for old, new in self.renamed.items() if _ends(name, old))]
        return next((spelled for known in names for spelled in self._spellings(known) if spelled in wanted), None)

    def _spellings(self, name: str) -> Iterator[str]:
        """Yield the canonical names that a name on disk may stand for: with and without the family's prefix, or another class's."""
        yield from (name, self.optional_prefix + name, name.removeprefix(self.optional_prefix))
        for prefix in self.prefixes:
            if name.startswith(prefix):
                yield self.optional_prefix + name.removeprefix(prefix)

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """The leading parts of tensor names in classes with a head: the family's own first."""
        return tuple(dict.fromkeys((self.optional_prefix, *(head.prefix for head in self.heads if head.prefix))))

    def likeness(self, names: Collection[str]) -> float:
        """How far tensor names on disk are those of this family, from 0 to 1, whatever the sizes.

        The less of two shares: of the names that a row claims, and of the rows without condition and part that claim a name.
        """
        numbered = {re.sub(r"(?<=\.)[0-9]+(?=\.)", "0", name) for name in names}
        rows = {row.name(0 if row.depth else None): row for row in self.table}
        claimed = {name: self.canonical(name, rows) for name in numbered if not self.is_ignored(name)}
        needed = {name for name, row in rows.items() if not (row.layout.conditions or row.layout.part)}
        found = {name for name in claimed.values() if name is not None}
        named = sum(name is not None for name in claimed.values())
        return min(named / max(1, len(claimed)), len(needed & found) / max(1, len(needed)))

    @cached_property
    def _ignored(self) -> tuple[re.Pattern[str], ...]:
        return tuple(matcher(name) for pattern in self.ignored for name in expand(pattern))

    def is_ignored(self, name: str) -> bool:
        """Return whether the library's loader passes over a tensor with this name on disk."""
        name = self.unwrapped(name)
        return any(known.match(spelled) for spelled in self._spellings(name) for known in self._ignored)

    # Targets.

    def resize(
        self, config: Config, changes: Mapping[str, object], *, where: str = "target.config"
    ) -> dict[str, object]:
        """The target's config: `changes` applied to the source's, refused if growth cannot produce it.

        Args:
            config: the source's config.
            changes: config keys and their new values.
            where: how errors name the target.

        Raises:
            RecipeError: an unknown key, a size that does not fit or shrinks, an axis that cannot grow, a new tie.
        """
        self._check_keys(config, changes, where)
        try:
            target = self._relabelled(config, changes)
            old, new = self.sizes(config), self.sizes(target)
        except SizeError as error:
            raise RecipeError(f"the target's sizes do not fit: {error}", where=where) from None
        wrong = self.wrong_value(target)
        if wrong is not None:
            key, expected = wrong
            raise RecipeError(
                f"{key}: not a value of a {self.name}", where=where, expected=expected, found=brief(target[key])
            )
        for axis in self.axes:
            self._check_axis(axis, old[axis], new[axis], where)
        self._check_conditions(config, target, where)
        if self.is_tied(target) and not self.is_tied(config):
            raise RecipeError(
                f"{self.tie_key}: an untied head cannot become tied", where=where, expected=False, found=True
            )
        for key in self.required_values:
            if key in changes and not self._allows(key, changes[key]):
                raise RecipeError(
                    f"{self.name} with {key} = {brief(changes[key])} is not supported",
                    where=where,
                    expected=" or ".join(map(str, self._required(key))),
                )
        return target

    def _required(self, key: str) -> tuple[object, ...]:
        """The values of a key for which this table is valid."""
        value = self.required_values[key]
        return value if isinstance(value, tuple) else (value,)

    def _allows(self, key: str, value: object) -> bool:
        return value in self._required(key)

    def _relabelled(self, config: Config, changes: Mapping[str, object]) -> dict[str, object]:
        """`changes` applied to a config, without the names of classes that it no longer has."""
        target = {**config, **changes}
        ids, dropped = changes.get("id2label") if self.label_names else None, set[str]()
        if isinstance(ids, Mapping):
            # A number that the config states would win over the names.
            dropped = {"num_labels", "label2id"}
        elif self.label_names and "num_labels" in changes:
            dropped = {*self.label_names} if changes["num_labels"] != self.sizes(config)[self.labels] else set()
        target = {key: value for key, value in target.items() if key in changes or key not in dropped}
        if isinstance(ids, Mapping) and "label2id" not in changes:
            target["label2id"] = {
                name: int(number) if str(number).isdigit() else number for number, name in ids.items()
            }
        return target

    def _check_keys(self, config: Config, changes: Mapping[str, object], where: str) -> None:
        """Refuse changes of keys that are unknown or not the target's to set. Raises RecipeError."""
        known = {*config, *self.defaults, *self.size_keys}
        named = sorted({*self.defaults, *self.size_keys})
        for key in changes:
            if key in ("dtype", "torch_dtype"):
                raise RecipeError(f"{key}: set output.dtype instead", where=where)
            if key not in known:
                near = close_matches(str(key), named)
                raise RecipeError(
                    f"{key}: {self.name} has no such config key" + (f" (did you mean {near[0]!r}?)" if near else ""),
                    where=where,
                    hint="sizes are set by: " + ", ".join(self.size_keys),
                )
            if key in ("model_type", "architectures", "auto_map"):
                raise RecipeError(f"{key} cannot change: a model grows within its family", where=where)

    def _check_axis(self, axis: str, old: int, new: int, where: str) -> None:
        """Refuse a size that an axis cannot grow to. Raises RecipeError."""
        if axis == self.labels:
            # A different number of classes means a new head, which may have any size.
            return
        if axis in self.never_grown and new != old:
            raise RecipeError(f"{axis} cannot grow", where=where, expected=old, found=new)
        if axis in self.rotary_axes and new != old:
            raise RecipeError(
                f"{axis} must keep its size in the {self.name} family: positions are encoded along it",
                where=where,
                expected=f"{self.axes[axis]} = {old}",
                found=new,
                hint="grow the number of heads with the width",
            )
        if new < old:
            raise RecipeError(
                f"the target is smaller than its source along {axis} ({self.axes[axis]})",
                where=where,
                expected=f"at least {old}",
                found=new,
            )

    def _check_conditions(self, config: Config, target: Config, where: str) -> None:
        """Refuse a target with a conditional row that the source lacks; a part that it lacks as a whole is drawn. Raises RecipeError."""
        old, new = self.complete(config), self.complete(target)
        drawn = self._absent_parts(config)
        for row in self.rows:
            if row.layout.part in drawn:
                continue
            failing = row.layout.failing(old)
            if failing is not None and row.present(new):
                key = failing.key
                raise RecipeError(
                    f"{key}: the target would have {row.pattern}, and the source has no such tensor",
                    where=where,
                    expected=old.get(key),
                    found=new.get(key),
                )

    def changed_function(self, config: Config, target: Config) -> tuple[str, ...]:
        """The changed config keys that alter the model's function without altering a size, such as an activation."""
        old, new = self.complete(config), self.complete(target)
        inactive = {
            key
            for switch, keys in self.conditional_keys.items()
            for key in keys
            if not (old.get(switch) or new.get(switch))
        }
        if self.rotary_limit and not (reads_limit(old) or reads_limit(new)):
            inactive.add(self.rotary_limit)
        free = {
            *inactive,
            *self.size_keys,
            *self.function_irrelevant_keys,
            *self.per_layer_keys,
            *self.label_names,
            self.norm.epsilon,
        }
        if not {*self.tied} & {*self.width_factors}:
            # Where the library scales what a tied head reads, untying it changes more than where its weights lie.
            free.add(self.tie_key)
        return tuple(key for key in new if key not in free and old.get(key) != new.get(key))


def reads_limit(config: Config) -> bool:
    """Return whether the rotary positions of a config compute with the config's most positions."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        return True
    # One mapping for all layers, or one for each kind of layer.
    nested = [item for item in parameters.values() if isinstance(item, Mapping)]
    for item in nested or [parameters]:
        kind = item.get("rope_type", item.get("type", "default"))
        stated = {**config, **item}
        groups = READ_LIMIT.get(str(kind))
        if groups is None or not all(any(stated.get(key) is not None for key in group) for group in groups):
            return True
    return False


def _ends(name: str, ending: str) -> bool:
    """Return whether whole parts at the end of a name are `ending`."""
    return name == ending or name.endswith(f".{ending}")


_KINDS: Mapping[type, str] = MappingProxyType(
    {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        tuple: "a list",
        dict: "a mapping",
    }
)


def _is_like(value: object, default: object) -> bool:
    """Return True if a config value has the type of the library's default; a whole number may stand for a fraction."""
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, list | tuple if isinstance(default, list | tuple) else type(default))


def _rope_kinds(value: Mapping[str, object]) -> list[object]:
    """Return the kinds of rotary positions in a config value, which may be nested by the type of a layer."""
    parts = [value, *(part for part in value.values() if isinstance(part, Mapping))]
    return [part.get("rope_type", part.get("type")) for part in parts if {"rope_type", "type"} & set(part)]


def _roles(rows: Iterable[Row]) -> dict[str, frozenset[str]]:
    roles: dict[str, set[str]] = {}
    for row in rows:
        for dim in row.layout.dims:
            for part in dim.parts:
                roles.setdefault(part, set()).add(dim.role)
    return {stream: frozenset(names) for stream, names in roles.items()}
