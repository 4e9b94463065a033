"""CodeGen (Nijkamp et al., 2022) as transformers stores it: GPT-J's layers, with the attention's projections fused in four shards."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.gptj import GPTJ
from ligo_convert.families.schema import classes

PAPER = r"""@misc{nijkamp2022codegen,
  title  = {{CodeGen}: An Open Large Language Model for Code with Multi-Turn Program Synthesis},
  author = {Nijkamp, Erik and Pang, Bo and Hayashi, Hiroaki and Tu, Lifu and Wang, Huan and Zhou, Yingbo and Savarese, Silvio and
            Xiong, Caiming},
  year   = {2022},
  url    = {https://arxiv.org/abs/2203.13474}
}"""

CODEGEN = replace(
    GPTJ,
    name="codegen",
    model_type="codegen",
    heads=classes(GPTJ.heads, "GPTJ", "CodeGen", without=("sequence-classification", "question-answering")),
    axes={
        "embed": "n_embd",
        # The library's code fixes the number of shards. Each holds the queries, the values and the keys of its heads.
        "shard": "4",
        "three": "3",
        "shard_heads": "n_head / 4",
        "head_dim": "n_embd / n_head",
        "mlp": "n_inner or 4 * n_embd",
        "vocab": "vocab_size",
        "position": "n_positions",
        "layer": "n_layer",
    },
    streams={"fused": "shard*three*shard_heads*head_dim", "context": "shard*shard_heads*head_dim"},
    tensors={
        "transformer.wte.weight": "vocab -> embed",
        "transformer.h.{layer}.ln_1.weight": "embed gain",
        "transformer.h.{layer}.ln_1.bias": "embed shift",
        "transformer.h.{layer}.attn.qkv_proj.weight": "fused <- embed",
        "transformer.h.{layer}.attn.out_proj.weight": "embed <- context",
        "transformer.h.{layer}.mlp.fc_in.weight": "mlp <- embed",
        "transformer.h.{layer}.mlp.fc_in.bias": "mlp",
        "transformer.h.{layer}.mlp.fc_out.weight": "embed <- mlp",
        "transformer.h.{layer}.mlp.fc_out.bias": "embed",
        "transformer.ln_f.weight": "embed gain",
        "transformer.ln_f.bias": "embed shift",
        "lm_head.weight": "vocab <- embed in lm",
        "lm_head.bias": "vocab in lm",
    },
    ignored=("transformer.h.{layer}.attn.causal_mask",),
    labels="",
    never_grown=("vocab", "position", "shard", "three"),
    # Queries and keys are parts of one stream. They are as wide as the context, which is what the attention's cost depends on.
    dot_products=(("context", "context"),),
    function_irrelevant_keys=(*GPTJ.function_irrelevant_keys, "n_ctx"),
    defaults={
        "vocab_size": 50400,
        "n_positions": 2048,
        "n_ctx": 2048,
        "n_embd": 4096,
        "n_layer": 28,
        "n_head": 16,
        "rotary_dim": 64,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "tie_word_embeddings": False,
    },
    published={
        "codegen-350M": {"n_embd": 1024, "n_head": 16, "n_layer": 20},
        "codegen-2B": {"n_embd": 2560, "n_head": 32, "n_layer": 32},
        "codegen-16B": {"n_embd": 6144, "n_head": 24, "n_layer": 34},
    },
    paper=PAPER,
)
