"""GPT-NeoX (Black et al., 2022) and Pythia as transformers stores them: parallel branches, each with a norm, attention fused by head."""

from __future__ import annotations

from ligo_convert.families.definitions.gpt2 import DECODERS
from ligo_convert.families.schema import Family, Head, Norm

PAPER = r"""@misc{black2022gptneox,
  title  = {{GPT-NeoX-20B}: An Open-Source Autoregressive Language Model},
  author = {Black, Sid and Biderman, Stella and Hallahan, Eric and Anthony, Quentin and others},
  year   = {2022},
  url    = {https://arxiv.org/abs/2204.06745}
}"""

GPT_NEOX = Family(
    name="gpt_neox",
    model_type="gpt_neox",
    heads=(
        Head(parts=("lm",), task="causal-lm", architecture="GPTNeoXForCausalLM"),
        Head(parts=("score",), task="sequence-classification", architecture="GPTNeoXForSequenceClassification"),
        Head(parts=("classifier",), task="token-classification", architecture="GPTNeoXForTokenClassification"),
        Head(parts=("answers",), task="question-answering", architecture="GPTNeoXForQuestionAnswering"),
        Head(task="decoder", architecture="GPTNeoXModel", base=True),
    ),
    axes={
        "embed": "hidden_size",
        "heads": "num_attention_heads",
        # Query, key and value of a head lie side by side.
        "three": "3",
        "head_dim": "hidden_size / num_attention_heads",
        "mlp": "intermediate_size",
        "vocab": "vocab_size",
        "label": "num_labels or #id2label or 2",
        # The logits of an answer's first and last token.
        "span": "2",
        "layer": "num_hidden_layers",
    },
    streams={"fused": "heads*three*head_dim", "context": "heads*head_dim"},
    tensors={
        "gpt_neox.embed_in.weight": "vocab -> embed",
        "gpt_neox.layers.{layer}.(input|post_attention)_layernorm.weight": "embed gain",
        "gpt_neox.layers.{layer}.(input|post_attention)_layernorm.bias": "embed shift",
        "gpt_neox.layers.{layer}.attention.query_key_value.weight": "fused <- embed",
        "gpt_neox.layers.{layer}.attention.query_key_value.bias": "fused if attention_bias",
        "gpt_neox.layers.{layer}.attention.dense.weight": "embed <- context",
        "gpt_neox.layers.{layer}.attention.dense.bias": "embed if attention_bias",
        "gpt_neox.layers.{layer}.mlp.dense_h_to_4h.weight": "mlp <- embed",
        "gpt_neox.layers.{layer}.mlp.dense_h_to_4h.bias": "mlp",
        "gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight": "embed <- mlp",
        "gpt_neox.layers.{layer}.mlp.dense_4h_to_h.bias": "embed",
        "gpt_neox.final_layer_norm.weight": "embed gain",
        "gpt_neox.final_layer_norm.bias": "embed shift",
        # The name on disk; the library's model calls it `lm_head.weight`.
        "embed_out.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "classifier.weight": "label <- embed in classifier",
        "classifier.bias": "label in classifier",
        "qa_outputs.weight": "span <- embed in answers",
        "qa_outputs.bias": "span in answers",
    },
    norm=Norm(stream="embed", kind="layernorm", epsilon="layer_norm_eps", head="gpt_neox.final_layer_norm"),
    optional_prefix="gpt_neox.",
    in_model={"lm_head.weight": "embed_out.weight"},
    tied={"embed_out.weight": "gpt_neox.embed_in.weight"},
    ignored=(
        "gpt_neox.layers.{layer}.attention.(bias|masked_bias)",
        "(gpt_neox|gpt_neox.layers.{layer}.attention).rotary_emb.inv_freq",
    ),
    residual_outputs=("gpt_neox.layers.{layer}.attention.dense", "gpt_neox.layers.{layer}.mlp.dense_4h_to_h"),
    labels="label",
    never_grown=("vocab", "three", "label", "span"),
    rotary_axes=("head_dim",),
    rotary_limit="max_position_embeddings",
    # Queries and keys are parts of one stream. They are as wide as the context, which is what the attention's cost depends on.
    dot_products=(("context", "context"),),
    activation="hidden_act",
    # The rotary positions read `head_dim`, the projections do not.
    required_values={"head_dim": None},
    function_irrelevant_keys=(
        "attention_dropout",
        "hidden_dropout",
        "classifier_dropout",
        "initializer_range",
        "is_decoder",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ),
    defaults={
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "classifier_dropout": 0.1,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
        "is_decoder": False,
    },
    published={
        name: {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
        }
        for name, width, heads, layers in (
            ("pythia-70M", 512, 8, 6),
            ("pythia-160M", 768, 12, 12),
            ("pythia-410M", 1024, 16, 24),
            ("pythia-1B", 2048, 8, 16),
            ("pythia-1.4B", 2048, 16, 24),
            ("pythia-2.8B", 2560, 32, 32),
            ("pythia-6.9B", 4096, 32, 32),
            ("pythia-12B", 5120, 40, 36),
            ("gpt-neox-20B", 6144, 64, 44),
        )
    },
    paper=PAPER,
    trained=DECODERS,
)
