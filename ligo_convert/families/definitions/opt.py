"""OPT (Zhang et al., 2022) as transformers stores it: pre-LayerNorm with a fixed epsilon, positions that start at the third."""

from __future__ import annotations

from ligo_convert.families.definitions.gpt2 import DECODERS
from ligo_convert.families.schema import Family, Head, Norm

PAPER = r"""@misc{zhang2022opt,
  title  = {{OPT}: Open Pre-trained Transformer Language Models},
  author = {Zhang, Susan and Roller, Stephen and Goyal, Naman and Artetxe, Mikel and others},
  year   = {2022},
  url    = {https://arxiv.org/abs/2205.01068}
}"""

OPT = Family(
    name="opt",
    model_type="opt",
    heads=(
        Head(parts=("lm",), task="causal-lm", architecture="OPTForCausalLM"),
        Head(parts=("score",), task="sequence-classification", architecture="OPTForSequenceClassification"),
        Head(parts=("answers",), task="question-answering", architecture="OPTForQuestionAnswering"),
        Head(task="decoder", architecture="OPTModel", base=True),
    ),
    axes={
        # The width of the embeddings is a size key too, so that a target may set both.
        "embed": "hidden_size or word_embed_proj_dim",
        "heads": "num_attention_heads",
        "head_dim": "hidden_size / num_attention_heads",
        "mlp": "ffn_dim",
        "vocab": "vocab_size",
        "label": "num_labels or #id2label or 2",
        # The logits of an answer's first and last token.
        "span": "2",
        "position": "max_position_embeddings + 2",
        "layer": "num_hidden_layers",
    },
    streams={"query": "heads*head_dim", "key": "heads*head_dim", "value": "heads*head_dim"},
    tensors={
        "model.decoder.embed_tokens.weight": "vocab -> embed",
        "model.decoder.embed_positions.weight": "position -> embed",
        "model.decoder.final_layer_norm.weight": "embed gain",
        "model.decoder.final_layer_norm.bias": "embed shift",
        "model.decoder.layers.{layer}.self_attn.k_proj.weight": "key <- embed",
        "model.decoder.layers.{layer}.self_attn.k_proj.bias": "key if enable_bias",
        "model.decoder.layers.{layer}.self_attn.v_proj.weight": "value <- embed",
        "model.decoder.layers.{layer}.self_attn.v_proj.bias": "value if enable_bias",
        "model.decoder.layers.{layer}.self_attn.q_proj.weight": "query <- embed",
        "model.decoder.layers.{layer}.self_attn.q_proj.bias": "query if enable_bias",
        "model.decoder.layers.{layer}.self_attn.out_proj.weight": "embed <- value",
        "model.decoder.layers.{layer}.self_attn.out_proj.bias": "embed if enable_bias",
        "model.decoder.layers.{layer}.(self_attn|final)_layer_norm.weight": "embed gain",
        "model.decoder.layers.{layer}.(self_attn|final)_layer_norm.bias": "embed shift",
        "model.decoder.layers.{layer}.fc1.weight": "mlp <- embed",
        "model.decoder.layers.{layer}.fc1.bias": "mlp if enable_bias",
        "model.decoder.layers.{layer}.fc2.weight": "embed <- mlp",
        "model.decoder.layers.{layer}.fc2.bias": "embed if enable_bias",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "qa_outputs.weight": "span <- embed in answers",
        "qa_outputs.bias": "span in answers",
    },
    # The library's code fixes epsilon.
    norm=Norm(stream="embed", kind="layernorm", epsilon="", head="model.decoder.final_layer_norm"),
    positions="position",
    # The first two rows of the table belong to no position.
    position_offset="2",
    optional_prefix="model.",
    tied={"lm_head.weight": "model.decoder.embed_tokens.weight"},
    residual_outputs=("model.decoder.layers.{layer}.self_attn.out_proj", "model.decoder.layers.{layer}.fc2"),
    labels="label",
    never_grown=("vocab", "position", "label", "span"),
    dot_products=(("query", "key"),),
    activation="activation_function",
    # Both are whole only if both sizes are equal: otherwise projections stand between the embeddings and the stream.
    integer_expressions=("word_embed_proj_dim / hidden_size or 1", "hidden_size / word_embed_proj_dim or 1"),
    required_values={
        "do_layer_norm_before": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
    function_irrelevant_keys=(
        "dropout",
        "attention_dropout",
        "layerdrop",
        "init_std",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ),
    initializer="init_std",
    defaults={
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "ffn_dim": 3072,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "word_embed_proj_dim": None,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "num_attention_heads": 12,
        "activation_function": "relu",
        "layerdrop": 0.0,
        "init_std": 0.02,
        "use_cache": True,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
    },
    published={
        name: {
            "hidden_size": width,
            "word_embed_proj_dim": width,
            "ffn_dim": 4 * width,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
        }
        for name, width, heads, layers in (
            ("opt-125M", 768, 12, 12),
            ("opt-1.3B", 2048, 32, 24),
            ("opt-2.7B", 2560, 32, 32),
            ("opt-6.7B", 4096, 32, 32),
            ("opt-13B", 5120, 40, 40),
            ("opt-30B", 7168, 56, 48),
            ("opt-66B", 9216, 72, 64),
        )
    },
    paper=PAPER,
    trained=DECODERS,
)
