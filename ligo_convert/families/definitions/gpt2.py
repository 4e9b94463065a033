"""GPT-2 (Radford et al., 2019) as transformers stores it: fused attention, Conv1D weights (in, out), pre-LayerNorm."""

from __future__ import annotations

from ligo_convert.families.schema import Family, Head, Norm, Training

PAPER = r"""@techreport{radford2019language,
  title       = {Language Models are Unsupervised Multitask Learners},
  author      = {Radford, Alec and Wu, Jeffrey and Child, Rewon and Luan, David and Amodei, Dario and Sutskever, Ilya},
  institution = {OpenAI},
  year        = {2019}
}"""

# GPT-2's learning rates are not published; these models have the same layers.
_GPT3 = "GPT-3, arXiv:2005.14165, table 2.1 and appendix B"

DECODERS = tuple(
    Training(
        parameters=parameters, rate=rate, batch=f"{batch} tokens", warmup="375 million tokens", decay=0.1, paper=_GPT3
    )
    for parameters, rate, batch in (
        (125e6, 6.0e-4, "0.5M"),
        (350e6, 3.0e-4, "0.5M"),
        (760e6, 2.5e-4, "0.5M"),
        (1.3e9, 2.0e-4, "1M"),
        (2.7e9, 1.6e-4, "1M"),
        (6.7e9, 1.2e-4, "2M"),
    )
)

GPT2 = Family(
    name="gpt2",
    model_type="gpt2",
    heads=(
        Head(parts=("lm",), task="causal-lm", architecture="GPT2LMHeadModel"),
        Head(parts=("score",), task="sequence-classification", architecture="GPT2ForSequenceClassification"),
        Head(parts=("classifier",), task="token-classification", architecture="GPT2ForTokenClassification"),
        Head(parts=("answers",), task="question-answering", architecture="GPT2ForQuestionAnswering"),
        Head(task="decoder", architecture="GPT2Model", base=True),
    ),
    axes={
        "embed": "n_embd",
        "heads": "n_head",
        "head_dim": "n_embd / n_head",
        "mlp": "n_inner or 4 * n_embd",
        "vocab": "vocab_size",
        "label": "num_labels or #id2label or 2",
        # The logits of an answer's first and last token.
        "span": "2",
        "position": "n_positions",
        "layer": "n_layer",
    },
    streams={"query": "heads*head_dim", "key": "heads*head_dim", "value": "heads*head_dim"},
    tensors={
        "transformer.wte.weight": "vocab -> embed",
        "transformer.wpe.weight": "position -> embed",
        "transformer.h.{layer}.(ln_1|ln_2).weight": "embed gain",
        "transformer.h.{layer}.(ln_1|ln_2).bias": "embed shift",
        "transformer.h.{layer}.attn.c_attn.weight": "embed -> query+key+value",
        "transformer.h.{layer}.attn.c_attn.bias": "query+key+value",
        "transformer.h.{layer}.attn.c_proj.weight": "value -> embed",
        "transformer.h.{layer}.attn.c_proj.bias": "embed",
        "transformer.h.{layer}.mlp.c_fc.weight": "embed -> mlp",
        "transformer.h.{layer}.mlp.c_fc.bias": "mlp",
        "transformer.h.{layer}.mlp.c_proj.weight": "mlp -> embed",
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
    norm=Norm(stream="embed", kind="layernorm", epsilon="layer_norm_epsilon", head="transformer.ln_f"),
    positions="position",
    optional_prefix="transformer.",
    tied={"lm_head.weight": "transformer.wte.weight"},
    ignored=("transformer.h.{layer}.(attn|crossattention).(bias|masked_bias)",),
    residual_outputs=("transformer.h.{layer}.(attn|mlp).c_proj",),
    labels="label",
    never_grown=("vocab", "position", "label", "span"),
    dot_products=(("query", "key"),),
    scale_key="scale_attn_weights",
    activation="activation_function",
    required_values={"add_cross_attention": False},
    layer_index_keys=("scale_attn_by_inverse_layer_idx",),
    function_irrelevant_keys=(
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "initializer_range",
        "reorder_and_upcast_attn",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ),
    residual_init=("transformer.h.{layer}.(attn|mlp).c_proj.weight",),
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    published={
        "gpt2": {"n_embd": 768, "n_head": 12, "n_layer": 12},
        "gpt2-medium": {"n_embd": 1024, "n_head": 16, "n_layer": 24},
        "gpt2-large": {"n_embd": 1280, "n_head": 20, "n_layer": 36},
        "gpt2-xl": {"n_embd": 1600, "n_head": 25, "n_layer": 48},
    },
    paper=PAPER,
    trained=DECODERS,
)
