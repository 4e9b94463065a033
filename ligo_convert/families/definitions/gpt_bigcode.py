"""GPT-BigCode, the architecture of SantaCoder and StarCoder (Li et al., 2023): GPT-2's layers with one key and value for all heads."""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.gpt2 import GPT2
from ligo_convert.families.schema import classes

PAPER = r"""@misc{li2023starcoder,
  title  = {{StarCoder}: May the Source Be with You!},
  author = {Li, Raymond and Ben Allal, Loubna and Zi, Yangtian and Muennighoff, Niklas and others},
  year   = {2023},
  url    = {https://arxiv.org/abs/2305.06161}
}"""

GPT_BIGCODE = replace(
    GPT2,
    name="gpt_bigcode",
    model_type="gpt_bigcode",
    heads=tuple(
        replace(head, architecture="GPTBigCodeForCausalLM") if head.task == "causal-lm" else head
        for head in classes(GPT2.heads, "GPT2", "GPTBigCode", without=("question-answering",))
    ),
    # All heads share one key and one value, so the context is longer than the value that it mixes.
    streams={"query": "heads*head_dim", "context": "heads*head_dim", "key": "head_dim", "value": "head_dim"},
    tensors={
        "transformer.wte.weight": "vocab -> embed",
        "transformer.wpe.weight": "position -> embed",
        "transformer.h.{layer}.(ln_1|ln_2).weight": "embed gain",
        "transformer.h.{layer}.(ln_1|ln_2).bias": "embed shift",
        "transformer.h.{layer}.attn.c_attn.weight": "query+key+value <- embed",
        "transformer.h.{layer}.attn.c_attn.bias": "query+key+value",
        "transformer.h.{layer}.attn.c_proj.weight": "embed <- context",
        "transformer.h.{layer}.attn.c_proj.bias": "embed",
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
    },
    ignored=(),
    never_grown=("vocab", "position", "label", "span"),
    content_of={"context": "value"},
    # With a key for each head, the library lays the projection out by head: another table.
    required_values={"multi_query": True, "add_cross_attention": False},
    layer_index_keys=(),
    function_irrelevant_keys=(
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "initializer_range",
        "attention_softmax_in_fp32",
        "scale_attention_softmax_in_fp32",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ),
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_pytorch_tanh",
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "attention_softmax_in_fp32": True,
        "scale_attention_softmax_in_fp32": True,
        "multi_query": True,
        "add_cross_attention": False,
        "use_cache": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "pad_token_id": None,
        "tie_word_embeddings": True,
    },
    published={
        "SantaCoder-1.1B": {"n_embd": 2048, "n_inner": 8192, "n_head": 16, "n_layer": 24},
        "StarCoderBase-3B": {"n_embd": 2816, "n_inner": 11264, "n_head": 22, "n_layer": 36},
        "StarCoderBase-7B": {"n_embd": 4096, "n_inner": 16384, "n_head": 32, "n_layer": 42},
        "StarCoder-15.5B": {"n_embd": 6144, "n_inner": 24576, "n_head": 48, "n_layer": 40},
    },
    paper=PAPER,
)
