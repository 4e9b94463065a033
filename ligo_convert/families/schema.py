"""A family of models as data: which tensors there are, what their dims mean, how big they are.

What comes in is a config (plain data) and a source's tensor list; what goes out is an `Inventory` in which every tensor is
claimed by exactly one row and every row is used, the target's config, and the target's tensor list. No torch, no weights.
The tables lie in `families/`, one file each, without a function in them.
"""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from ligo_convert.checkpoints.tensors import FLOAT_DTYPES, TensorSpec
from ligo_convert.errors import RecipeError, SourceError, some
from ligo_convert.families.notation import (
    Layout,
    NotationError,
    SizeError,
    depth_axis,
    evaluate,
    expand,
    matcher,
    name_at,
    parse_layout,
    size_keys,
)

Config = Mapping[str, object]


Task = Literal["causal-lm", "masked-lm", "encoder", "sequence-classification", "image-classification"]


# Tasks that text alone gives no loss for: what such a model is learned by compares sequences with each other.
WITHOUT_LOSS: tuple[Task, ...] = ("encoder", "sequence-classification")


@dataclass(frozen=True, kw_only=True)
class Head:
    """One of the library's classes for a family: which parts of a checkpoint it has, and what it is trained for.

    Attributes:
        parts: the parts of the table (`in PART`) that it has, beside the rows that every class has.
        architecture: the class that config.json names. auto_class: the library's class that loads it.
        base: whether it is the model without a head, whose names lack the family's prefix.
        options: what its constructor must be told.
    """

    parts: tuple[str, ...] = ()
    task: Task
    architecture: str
    auto_class: str
    base: bool = False
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def name(self) -> str:
        """The class, and what its constructor is told: `BertModel(add_pooling_layer=False)`."""
        told = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.architecture}({told})" if told else self.architecture


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The normalisation of the residual stream.

    Attributes:
        stream: the stream that is normalised. epsilon: config key; "" where the library fixes it in its code.
        head: the norm that feeds the head: its rows' name without `.weight` and `.bias`.
        placement: before each branch (`pre`), or after its sum with what it was added to (`post`).
        after_embeddings, after_attention, after_mlp: of a post-norm model: the norm of the embeddings, the one after attention, the one that a layer ends with.
        summed_streams: streams that nothing but a norm (and a tied head) reads: sums of embeddings, where any linear map is free.
        activated_streams: streams that a norm reads straight from an activation, so that no linear map reaches what is normalised.
    """

    stream: str
    kind: Literal["layernorm", "rmsnorm"]
    epsilon: str
    head: str
    placement: Literal["pre", "post"] = "pre"
    after_embeddings: str = ""
    after_attention: str = ""
    after_mlp: str = ""
    summed_streams: tuple[str, ...] = ()
    activated_streams: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a family's table, alternatives expanded."""

    pattern: str
    layout: Layout

    @property
    def depth(self) -> str | None:
        return depth_axis(self.pattern)

    @property
    def module(self) -> str:
        """The pattern without `.weight` or `.bias`."""
        return self.pattern.rpartition(".")[0]

    def name(self, layer: int | None) -> str:
        return name_at(self.pattern, layer)

    def present(self, config: Config) -> bool:
        """Whether `config` calls for this row, if the checkpoint has its part at all."""
        if not self.layout.condition:
            return True
        return bool(config.get(self.layout.condition)) != self.layout.negated

    def piece_keys(self) -> tuple[str, ...]:
        """The names under which the unfused pieces keep their depth weights: the pattern, or `pattern/part`."""
        return tuple(f"{self.pattern}/{label}" if label else self.pattern for label, _ in self.layout.pieces())


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """A source checkpoint as its family sees it: every tensor claimed once, every row used.

    Attributes:
        family: narrowed to the class that the checkpoint is of. stored: canonical name -> the tensor on disk, under its name there.
        ignored: buffers that no model reads. left_out: weights of parts that no class of the library has beside the others.
        copies: (alias, canonical), both on disk and tied: their bytes must agree.
    """

    family: Family
    config: Config
    rows: tuple[Row, ...]
    stored: Mapping[str, TensorSpec]
    ignored: tuple[str, ...]
    left_out: tuple[str, ...]
    copies: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a paper trained a model from scratch: what the card of a grown one says beside its own advice.

    Attributes:
        parameters: of the model; of several of one recipe, one of them. rate: peak learning rate. batch: what that rate belongs to.
        warmup: how long the rate rises. decay: AdamW's weight decay. paper: what it is called, and where it is.
    """

    parameters: float
    rate: float
    batch: str
    warmup: str
    decay: float
    paper: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """A table of rows with what the growth mathematics must know about the model around them.

    Attributes:
        name, model_type: what it is called here, and in config.json. library: whose models these are.
        heads: the library's classes of this family, the usual one first. head: the one this family is narrowed to.
        axes: axis -> size expression over config keys. streams: stream -> product of axes, slowest first.
        tensors: name pattern -> layout.
        optional_prefix: a leading part of names that some checkpoints leave out.
        renamed: last part of a name as old checkpoints have it -> as it is now.
        tied: alias -> canonical pattern, in force where the config key `tie_key` is true.
        ignored: patterns of buffers that some checkpoints carry and no model reads.
        residual_outputs: the last projections of the residual branches (patterns without `.weight` and `.bias`), silenced in layers
            that must do nothing yet; in the order of the branches.
        layer_scales: branch end -> the LayerScale row that multiplies it.
        vocabulary, positions: the axes of token ids and of learned positions ("" where there are none).
        position_offset: how many positions are never used: a size expression, "" for none.
        labels: the axis of classes ("" where there are none).
        lookup_axes: axes that tensors are looked up in, not multiplied with. pooled: patterns (without `.weight` and `.bias`) of rows
            that are applied to one token of a sequence.
        never_grown: axes that never grow. rotary_axes: axes whose entries keep their meaning by position (rotary pairs).
        dot_products: (stream, stream) that meet in a scaled dot product; the scale is 1/sqrt(head size) where `scale_key` is true or empty.
        content_of: stream -> stream whose content it is, for the paper's ties.
        integer_expressions: expressions that the library wants to be whole numbers. defaults: what the library takes for a missing key.
        required_values: config values without which this table does not hold. per_layer_keys: config lists with an entry a layer -> depth axis.
        layer_index_keys: config keys that make a layer depend on its index.
        function_irrelevant_keys: config keys that may change without changing the function of a trained model at inference.
        conditional_keys: config key -> keys that say nothing while it is false.
        initializer: deviation of weights that the library draws: a config key, or a number. residual_init: rows that it initialises
            with a deviation divided by sqrt(2 * layers). scale_init: config key of a LayerScale's first value.
        architectures: names that stand for a whole config (timm's) -> what they set over `defaults`.
        paper: where the architecture is from, as BibTeX. trained: how models like it were trained from scratch; empty: nobody says.
    """

    name: str
    model_type: str
    heads: tuple[Head, ...]
    axes: Mapping[str, str]
    streams: Mapping[str, str]
    tensors: Mapping[str, str]
    norm: Norm
    defaults: Mapping[str, object]
    library: Literal["transformers", "timm"] = "transformers"
    head: Head | None = None
    vocabulary: str = "vocab"
    positions: str = ""
    position_offset: str = ""
    labels: str = ""
    lookup_axes: tuple[str, ...] = ("vocab", "position")
    pooled: tuple[str, ...] = ()
    optional_prefix: str = ""
    renamed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tied: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tie_key: str = "tie_word_embeddings"
    ignored: tuple[str, ...] = ()
    residual_outputs: tuple[str, ...] = ()
    layer_scales: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    never_grown: tuple[str, ...] = ()
    rotary_axes: tuple[str, ...] = ()
    dot_products: tuple[tuple[str, str], ...] = ()
    scale_key: str = ""
    content_of: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    integer_expressions: tuple[str, ...] = ()
    required_values: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    per_layer_keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    layer_index_keys: tuple[str, ...] = ()
    function_irrelevant_keys: tuple[str, ...] = ()
    conditional_keys: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    initializer: str | float = "initializer_range"
    residual_init: tuple[str, ...] = ()
    scale_init: str = ""
    architectures: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: MappingProxyType({}))
    paper: str = ""
    trained: tuple[Training, ...] = ()

    # The class of the library that it is narrowed to.

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
        """The library's class that loads such a model."""
        return self.chosen.auto_class

    @property
    def reads(self) -> Literal["text", "images"]:
        return "images" if self.task == "image-classification" else "text"

    def sequence(self, config: Config, length: int) -> int:
        """Tokens of one example: `length` of text, as many as an image has patches (the tokens beside them are few)."""
        return self.sizes(config)[self.positions] if self.reads == "images" else length

    def for_head(self, head: Head) -> Family:
        """This family with the rows of one class alone."""
        assert head in self.heads, head
        return replace(self, head=head)

    def for_architecture(self, name: object) -> Family:
        """This family narrowed to a class by its name, or by that of its architecture; to the usual one where it is none of its classes."""
        found = [head for head in self.heads if head.name == name]
        found += [head for head in self.heads if head.architecture == name]
        return self.for_head(found[0] if found else self.heads[0])

    def written(self, name: str) -> str:
        """A canonical name as the chosen class has it."""
        return name.removeprefix(self.optional_prefix) if self.chosen.base else name

    # The table, expanded and checked against itself.

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the chosen class."""
        return tuple(row for row in self.table if not row.layout.part or row.layout.part in self.chosen.parts)

    @cached_property
    def table(self) -> tuple[Row, ...]:
        """Every row, of whatever class."""
        rows = tuple(
            Row(pattern=name, layout=parse_layout(layout))
            for pattern, layout in self.tensors.items()
            for name in expand(pattern)
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
                raise NotationError(f"{self.name}: {row.pattern}: {row.depth!r} is no axis")
        if len({row.pattern for row in rows}) != len(rows):
            raise NotationError(f"{self.name}: two rows have one pattern")
        return rows

    @cached_property
    def depth_axes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.depth for row in self.rows if row.depth is not None))

    @cached_property
    def global_streams(self) -> frozenset[str]:
        """Streams seen in a row without a depth axis: one map serves all layers."""
        return frozenset(stream for row in self.rows if row.depth is None for stream in row.layout.streams)

    @cached_property
    def size_keys(self) -> tuple[str, ...]:
        """Every config key that decides a size."""
        return tuple(dict.fromkeys(key for expression in self.axes.values() for key in size_keys(expression)))

    @cached_property
    def roles(self) -> Mapping[str, frozenset[str]]:
        """What is done with each stream somewhere in the table: written, read, scaled or shifted."""
        return _roles(self.rows)

    def roles_for(self, config: Config) -> Mapping[str, frozenset[str]]:
        """`roles` as far as a model of `config` has the rows: what only a tied head would read is read by nobody."""
        return _roles(self.rows_for(config))

    def factors(self, stream: str) -> tuple[str, ...]:
        """The axes a stream is the product of, slowest first."""
        return tuple(self.streams[stream].split("*")) if stream in self.streams else (stream,)

    @cached_property
    def residual_output_modules(self) -> tuple[str, ...]:
        """The branch ends, alternatives expanded, in the order of the branches."""
        return tuple(name for end in self.residual_outputs for name in expand(end))

    @cached_property
    def _residual_init(self) -> frozenset[str]:
        return frozenset(name for pattern in self.residual_init for name in expand(pattern))

    @cached_property
    def pooled_modules(self) -> frozenset[str]:
        """The modules, and tensors without one, that are applied to one token of a sequence."""
        return frozenset(name for pattern in self.pooled for name in expand(pattern))

    def is_residual_output(self, row: Row) -> bool:
        return row.module in self.residual_output_modules

    def has_residual_init(self, row: Row) -> bool:
        return row.pattern in self._residual_init

    def scale_row(self, row: Row, config: Config) -> Row | None:
        """The LayerScale that multiplies what `row` writes; None where a model of `config` has none."""
        pattern = self.layer_scales.get(row.module)
        found = next((found for found in self.rows if found.pattern == pattern), None) if pattern else None
        return found if found is not None and found.present(self.complete(config)) else None

    def is_scale(self, row: Row) -> bool:
        return any(dim.role == "scale" for dim in row.layout.dims)

    def feeds_head(self, row: Row) -> bool:
        return row.module == self.norm.head

    def norms(self, sizes: Mapping[str, int]) -> int:
        """How many norms the residual stream passes in a model of these sizes."""
        gains = [
            row for row in self.rows if row.layout.dims[0].role == "gain" and self.norm.stream in row.layout.streams
        ]
        return sum(sizes[row.depth] if row.depth else 1 for row in gains)

    # Sizes, from plain config data.

    def complete(self, config: Config) -> dict[str, object]:
        """`config` with the library's defaults for what it leaves out."""
        return {**self.defaults, **config}

    def sizes(self, config: Config) -> dict[str, int]:
        """Axis and stream -> size. Raises SizeError."""
        complete = self.complete(config)
        sizes = {axis: evaluate(expression, complete) for axis, expression in self.axes.items()}
        for expression in self.integer_expressions:
            evaluate(expression, complete)
        self._offset(config)
        for stream in self.streams:
            size = 1
            for axis in self.factors(stream):
                size *= sizes[axis]
            sizes[stream] = size
        return sizes

    def longest(self, config: Config) -> int | None:
        """The longest sequence that its positions allow; None where they allow any."""
        found = self.sizes(config).get(self.positions)
        if found is None or self.reads == "images":
            return None
        return found - self._offset(config)

    def _offset(self, config: Config) -> int:
        return evaluate(self.position_offset, self.complete(config)) if self.position_offset else 0

    def shape(self, row: Row, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(sum(sizes.get(part, 1) for part in dim.parts) for dim in row.layout.dims)

    def layers(self, row: Row, config: Config) -> range | tuple[None]:
        return (None,) if row.depth is None else range(self.sizes(config)[row.depth])

    def is_tied(self, config: Config) -> bool:
        return bool(self.tied) and bool(self.complete(config).get(self.tie_key))

    def parameters(self, rows: Iterable[Row], config: Config) -> int:
        """How many parameters `rows` hold at the sizes of `config`."""
        return sum(spec.elements for _, _, spec in self.tensors_of(rows, config, dtype="F32"))

    def tensors_of(
        self, rows: Iterable[Row], config: Config, *, dtype: str
    ) -> Iterator[tuple[Row, int | None, TensorSpec]]:
        """Every tensor that `rows` stand for at the sizes of `config`, in table order, then by layer."""
        sizes = self.sizes(config)
        for row in rows:
            shape = self.shape(row, sizes)
            for layer in (None,) if row.depth is None else range(sizes[row.depth]):
                yield row, layer, TensorSpec(name=row.name(layer), dtype=dtype, shape=shape)

    def rows_for(self, config: Config) -> tuple[Row, ...]:
        """The rows that a model of `config` and of the chosen class has: by config key, without tied aliases."""
        complete = self.complete(config)
        tied = set(self.tied) if self.is_tied(config) else set()
        return tuple(row for row in self.rows if row.present(complete) and row.pattern not in tied)

    # What a source holds.

    def check_config(self, config: Config, *, where: str) -> None:
        """Refuse a config that this table does not describe. Raises SourceError."""
        for key, value in self.required_values.items():
            if key in config and config[key] != value:
                raise SourceError(
                    f"{self.name} with {key} = {config[key]!r} is not supported",
                    where=where,
                    expected=f"{key} = {value!r}",
                )
        try:
            self.sizes(config)
        except SizeError as error:
            raise SourceError(f"the sizes of this {self.name} do not fit: {error}", where=where) from None

    def check(self, config: Config, tensors: Mapping[str, TensorSpec], *, label: str) -> Inventory:
        """Claim every tensor of a source by exactly one row.

        Args:
            config: config.json of the source. tensors: name on disk -> spec. label: how errors name the source.

        Raises:
            SourceError: a tensor unclaimed or claimed twice, a row unused, a wrong shape, a dtype that is no float.
        """
        self.check_config(config, where=f"{label}/config.json")
        complete, sizes, tied = self.complete(config), self.sizes(config), self.is_tied(config)
        wanted: dict[str, tuple[Row, int | None]] = {}
        for row in self.table:
            if row.present(complete):
                for layer in self.layers(row, config):
                    wanted[row.name(layer)] = (row, layer)
        ignored = [matcher(pattern) for name in self.ignored for pattern in expand(name)]
        stored: dict[str, TensorSpec] = {}
        unclaimed, passed = [], []
        for name, spec in tensors.items():
            canonical = self.canonical(name, wanted)
            if canonical is not None:
                if canonical in stored:
                    raise SourceError(
                        "a tensor is there twice",
                        where=label,
                        found=f"{stored[canonical].name} and {name}",
                        hint="keep one",
                    )
                row, _ = wanted[canonical]
                self._check_spec(spec, self.shape(row, sizes), label)
                stored[canonical] = spec
            elif any(pattern.match(name) or pattern.match(self.optional_prefix + name) for pattern in ignored):
                passed.append(name)
            else:
                unclaimed.append(name)
        if unclaimed and config.get("quantization_config"):
            raise SourceError(
                f"{unclaimed[0]} is of a quantised model, as quantization_config in config.json says",
                where=label,
                hint="quantised checkpoints cannot grow; take the original one",
            )
        if unclaimed:
            raise self._unclaimed(unclaimed, wanted, sizes, label)
        family = self.for_head(self._head_of({wanted[name][0].layout.part for name in stored}, config))
        left_out = [name for name in stored if wanted[name][0].layout.part not in ("", *family.chosen.parts)]
        leftovers = tuple(stored.pop(name).name for name in left_out)
        copies = []
        for alias, pattern in self.tied.items() if tied else ():
            # Tied: one of the two names is enough, whichever a writer kept.
            if alias in stored and pattern in stored:
                copies.append((stored[alias].name, stored[pattern].name))
            elif alias in stored:
                stored[pattern] = stored[alias]
            stored.pop(alias, None)
        rows = family.rows_for(config)
        missing = [
            row.name(layer) for row in rows for layer in self.layers(row, config) if row.name(layer) not in stored
        ]
        if missing:
            raise SourceError(
                f"{len(missing)} tensor(s) that config.json calls for are in no weight file",
                where=label,
                expected=some(missing),
                hint="the checkpoint is incomplete, or config.json is another model's",
            )
        return Inventory(
            family=family,
            config=config,
            rows=rows,
            stored=stored,
            ignored=tuple(passed),
            left_out=leftovers,
            copies=tuple(copies),
        )

    def canonical(self, name: str, wanted: Container[str]) -> str | None:
        """The canonical name of a tensor on disk, whose prefix may be left out and whose last part may be an old one; None: no row's."""
        head, dot, last = name.rpartition(".")
        for known in (name, head + dot + self.renamed[last]) if last in self.renamed else (name,):
            for prefixed in (known, self.optional_prefix + known):
                if prefixed in wanted:
                    return prefixed
        return None

    def _head_of(self, parts: set[str], config: Config) -> Head:
        """The class with the most of the parts found; of several the one that config.json names, else the first."""
        fitting = [head for head in self.heads if parts.issuperset(head.parts)]
        if not fitting:
            # What a class needs is missing: the usual one says what.
            return self.heads[0]
        named = config.get("architectures")
        names = named if isinstance(named, list) else []
        most = max(len(head.parts) for head in fitting)
        best = [head for head in fitting if len(head.parts) == most]
        return next((head for head in best if head.architecture in names), best[0])

    def _check_spec(self, spec: TensorSpec, shape: tuple[int, ...], label: str) -> None:
        if spec.dtype not in FLOAT_DTYPES:
            raise SourceError(
                "a weight is no floating-point tensor",
                where=f"{label}: {spec.name}",
                expected=" ".join(FLOAT_DTYPES),
                found=spec.dtype,
                hint="quantised checkpoints cannot grow; take the original one",
            )
        if spec.shape != shape:
            raise SourceError(
                "a tensor has another shape than config.json says",
                where=f"{label}: {spec.name}",
                expected=list(shape),
                found=list(spec.shape),
            )

    def _unclaimed(
        self, names: list[str], wanted: Mapping[str, object], sizes: Mapping[str, int], label: str
    ) -> SourceError:
        first = names[0]
        patterns = {row.name(0 if row.depth else None): row.pattern for row in self.table}
        near = difflib.get_close_matches(first, list(patterns), n=1, cutoff=0.0)
        more = f" (+{len(names) - 1} more)" if len(names) > 1 else ""
        depths = ", ".join(f"{axis} = {sizes[axis]}" for axis in self.depth_axes)
        return SourceError(
            f"{self.name}: no row claims {first}{more}",
            where=label,
            hint=f"nearest row: {patterns[near[0]] if near else '-'}\nconfig.json says {depths}; `ligo-convert describe {self.name}`"
            " lists every row",
        )

    # What a target is.

    def resize(
        self, config: Config, changes: Mapping[str, object], *, where: str = "target.config"
    ) -> dict[str, object]:
        """The target's config: `changes` over the source's, refused where growth cannot get there.

        Raises:
            RecipeError: an unknown key, a size that does not fit or shrinks, an axis that cannot grow, a new tie.
        """
        known = {*config, *self.defaults, *self.size_keys}
        for key in changes:
            if key in ("dtype", "torch_dtype"):
                raise RecipeError(f"{key}: set output.dtype instead", where=where)
            if key not in known:
                near = difflib.get_close_matches(str(key), sorted(known), n=1)
                raise RecipeError(
                    f"{key}: {self.name} has no such config key" + (f" (did you mean {near[0]!r}?)" if near else ""),
                    where=where,
                    hint="sizes are set by: " + ", ".join(self.size_keys),
                )
            if key in ("model_type", "architectures", "auto_map"):
                raise RecipeError(f"{key} cannot change: a model grows within its family", where=where)
        target = {**config, **changes}
        try:
            old, new = self.sizes(config), self.sizes(target)
        except SizeError as error:
            raise RecipeError(f"the target's sizes do not fit: {error}", where=where) from None
        for axis in self.axes:
            # Another number of classes is a new head.
            if axis in self.never_grown and new[axis] != old[axis] and axis != self.labels:
                raise RecipeError(f"{axis} cannot grow", where=where, expected=old[axis], found=new[axis])
            if axis in self.rotary_axes and new[axis] != old[axis]:
                raise RecipeError(
                    f"{axis} must stay as it is in the {self.name} family: positions are encoded in it",
                    where=where,
                    expected=f"{self.axes[axis]} = {old[axis]}",
                    found=new[axis],
                    hint="grow the number of heads with the width",
                )
            if new[axis] < old[axis] and axis != self.labels:
                raise RecipeError(
                    f"the target is smaller than its source along {axis} ({self.axes[axis]})",
                    where=where,
                    expected=f"at least {old[axis]}",
                    found=new[axis],
                )
        self._check_conditions(config, target, where)
        if self.is_tied(target) and not self.is_tied(config):
            raise RecipeError(
                f"{self.tie_key}: an untied head cannot become tied", where=where, expected=False, found=True
            )
        for key, value in self.required_values.items():
            if key in changes and changes[key] != value:
                raise RecipeError(
                    f"{self.name} with {key} = {changes[key]!r} is not supported", where=where, expected=value
                )
        return target

    def _check_conditions(self, config: Config, target: Config, where: str) -> None:
        """Refuse a target with rows that its source could have and has not. Raises RecipeError."""
        old, new = self.complete(config), self.complete(target)
        for row in self.rows:
            if row.present(new) and not row.present(old):
                key = row.layout.condition
                raise RecipeError(
                    f"{key}: the target would have {row.pattern}, and the source has no such tensor",
                    where=where,
                    expected=old.get(key),
                    found=new.get(key),
                )

    def changed_function(self, config: Config, target: Config) -> tuple[str, ...]:
        """Config keys that change what a model computes without changing a size, such as an activation."""
        old, new = self.complete(config), self.complete(target)
        idle = {
            key
            for switch, keys in self.conditional_keys.items()
            for key in keys
            if not (old.get(switch) or new.get(switch))
        }
        free = {
            *idle,
            *self.size_keys,
            *self.function_irrelevant_keys,
            *self.per_layer_keys,
            self.norm.epsilon,
            self.tie_key,
        }
        return tuple(key for key in new if key not in free and old.get(key) != new.get(key))


def _roles(rows: Iterable[Row]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        for dim in row.layout.dims:
            for part in dim.parts:
                found.setdefault(part, set()).add(dim.role)
    return {stream: frozenset(roles) for stream, roles in found.items()}
