"""GPT-Neo (Black et al., 2021) as transformers stores it: GPT-2's layers with separate projections, every other layer with a window."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.gpt2 import GPT2
from ligo_convert.families.schema import classes

PAPER = r"""@misc{black2021gptneo,
  title  = {{GPT-Neo}: Large Scale Autoregressive Language Modeling with {Mesh-Tensorflow}},
  author = {Black, Sid and Gao, Leo and Wang, Phil and Leahy, Connor and Biderman, Stella},
  year   = {2021},
  url    = {https://doi.org/10.5281/zenodo.5297715}
}"""

GPT_NEO = replace(
    GPT2,
    name="gpt_neo",
    model_type="gpt_neo",
    heads=tuple(
        replace(head, architecture="GPTNeoForCausalLM") if head.task == "causal-lm" else head
        for head in classes(GPT2.heads, "GPT2", "GPTNeo")
    ),
    axes={
        "embed": "hidden_size",
        "heads": "num_heads",
        "head_dim": "hidden_size / num_heads",
        "mlp": "intermediate_size or 4 * hidden_size",
        "vocab": "vocab_size",
        "label": "num_labels or #id2label or 2",
        # The logits of an answer's first and last token.
        "span": "2",
        "position": "max_position_embeddings",
        "layer": "num_layers",
    },
    tensors={
        "transformer.wte.weight": "vocab -> embed",
        "transformer.wpe.weight": "position -> embed",
        "transformer.h.{layer}.(ln_1|ln_2).weight": "embed gain",
        "transformer.h.{layer}.(ln_1|ln_2).bias": "embed shift",
        "transformer.h.{layer}.attn.attention.k_proj.weight": "key <- embed",
        "transformer.h.{layer}.attn.attention.v_proj.weight": "value <- embed",
        "transformer.h.{layer}.attn.attention.q_proj.weight": "query <- embed",
        "transformer.h.{layer}.attn.attention.out_proj.weight": "embed <- value",
        "transformer.h.{layer}.attn.attention.out_proj.bias": "embed",
        "transformer.h.{layer}.mlp.c_fc.weight": "mlp <- embed",
        "transformer.h.{layer}.mlp.c_fc.bias": "mlp",
        "transformer.h.{layer}.mlp.c_proj.weight": "embed <- mlp",
        "transformer.h.{layer}.mlp.c_proj.bias": "embed",
        "transformer.ln_f.weight": "embed gain",
        "transformer.ln_f.bias": "embed shift",
        "lm_head.weight": "vocab <- embed in lm",
        "score.weight": "label <- embed in score",
        "classifier.weight": "label <- embed in classifier",
        "classifier.bias": "label in classifier",
        "qa_outputs.weight": "span <- embed in answers",
        "qa_outputs.bias": "span in answers",
    },
    ignored=("transformer.h.{layer}.attn.attention.(bias|masked_bias)",),
    residual_outputs=("transformer.h.{layer}.attn.attention.out_proj", "transformer.h.{layer}.mlp.c_proj"),
    # The dot products are never divided by the root of the head size: no config has GPT-2's key, or it must be false.
    scale_key="scale_attn_weights",
    required_values={"scale_attn_weights": False},
    # `attention_layers` wins over `attention_types`, of which the library makes it. Without it, the index of a layer decides.
    per_layer_keys={"attention_layers": "layer"},
    layer_index_keys=("window_size",),
    function_irrelevant_keys=(
        "resid_dropout",
        "embed_dropout",
        "attention_dropout",
        "classifier_dropout",
        "initializer_range",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ),
    residual_init=(),
    defaults={
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "hidden_size": 2048,
        "num_layers": 24,
        "attention_types": None,
        "num_heads": 16,
        "intermediate_size": None,
        "window_size": 256,
        "activation_function": "gelu_new",
        "resid_dropout": 0.0,
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
        "classifier_dropout": 0.1,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "pad_token_id": None,
        "tie_word_embeddings": True,
    },
    published={
        "gpt-neo-125M": {"hidden_size": 768, "num_heads": 12, "num_layers": 12},
        "gpt-neo-1.3B": {"hidden_size": 2048, "num_heads": 16, "num_layers": 24},
        "gpt-neo-2.7B": {"hidden_size": 2560, "num_heads": 20, "num_layers": 32},
    },
    paper=PAPER,
)
