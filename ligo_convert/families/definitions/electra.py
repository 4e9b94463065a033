"""ELECTRA (Clark et al., 2020) as transformers stores it: BERT's body, a head that finds replaced tokens, or one that makes them.

Only models whose embeddings are as wide as the residual stream: the library has no projection between the two then.
"""

from __future__ import annotations

from dataclasses import replace

from ligo_convert.families.definitions.bert import BERT
from ligo_convert.families.schema import Head, Norm, Training

PAPER = r"""@inproceedings{clark2020electra,
  title     = {{ELECTRA}: Pre-training Text Encoders as Discriminators Rather Than Generators},
  author    = {Clark, Kevin and Luong, Minh-Thang and Le, Quoc V. and Manning, Christopher D.},
  booktitle = {ICLR},
  year      = {2020},
  url       = {https://arxiv.org/abs/2003.10555}
}"""

TRAININGS = tuple(
    Training(
        parameters=parameters,
        rate=2e-4,
        batch=batch,
        warmup=warmup,
        decay=0.01,
        paper="ELECTRA, arXiv:2003.10555, table 6",
    )
    for parameters, batch, warmup in (
        (110e6, "256 sequences", "10,000 of 766,000 steps"),
        (335e6, "2048 sequences", "10,000 of 400,000 steps"),
    )
)

ELECTRA = replace(
    BERT,
    name="electra",
    model_type="electra",
    heads=(
        Head(parts=("lm",), task="masked-lm", architecture="ElectraForMaskedLM"),
        Head(
            parts=("discriminator",),
            task="token-classification",
            architecture="ElectraForPreTraining",
            auto_class="AutoModelForPreTraining",
        ),
        Head(parts=("sequence",), task="sequence-classification", architecture="ElectraForSequenceClassification"),
        Head(parts=("token",), task="token-classification", architecture="ElectraForTokenClassification"),
        Head(parts=("answers",), task="question-answering", architecture="ElectraForQuestionAnswering"),
        Head(parts=("choices",), task="multiple-choice", architecture="ElectraForMultipleChoice"),
        Head(task="encoder", architecture="ElectraModel", base=True),
    ),
    axes={
        # Both keys have the same value: see `integer_expressions`.
        "embed": "hidden_size or embedding_size",
        "heads": "num_attention_heads",
        "head_dim": "hidden_size / num_attention_heads",
        "mlp": "intermediate_size",
        "vocab": "vocab_size",
        "position": "max_position_embeddings",
        "segment": "type_vocab_size",
        "label": "num_labels or #id2label or 2",
        "choice": "1",
        # The logits of an answer's first and last token.
        "span": "2",
        # The logit of a replaced token.
        "replaced": "1",
        "layer": "num_hidden_layers",
    },
    tensors={
        **{name.replace("bert.", "electra."): row for name, row in BERT.tensors.items() if ".layer.{layer}." in name},
        "electra.embeddings.word_embeddings.weight": "vocab -> token",
        "electra.embeddings.position_embeddings.weight": "position -> token",
        "electra.embeddings.token_type_embeddings.weight": "segment -> token",
        "electra.embeddings.LayerNorm.weight": "embed gain",
        "electra.embeddings.LayerNorm.bias": "embed shift",
        "generator_predictions.LayerNorm.weight": "transformed gain in lm",
        "generator_predictions.LayerNorm.bias": "transformed shift in lm",
        "generator_predictions.dense.weight": "transformed <- embed in lm",
        "generator_predictions.dense.bias": "transformed in lm",
        "generator_lm_head.weight": "vocab <- transformed in lm",
        "generator_lm_head.bias": "vocab in lm",
        "discriminator_predictions.dense.weight": "judged <- embed in discriminator",
        "discriminator_predictions.dense.bias": "judged in discriminator",
        "discriminator_predictions.dense_prediction.weight": "replaced <- judged in discriminator",
        "discriminator_predictions.dense_prediction.bias": "replaced in discriminator",
        "classifier.dense.weight": "pooled <- embed in sequence",
        "classifier.dense.bias": "pooled in sequence",
        "classifier.out_proj.weight": "label <- pooled in sequence",
        "classifier.out_proj.bias": "label in sequence",
        "sequence_summary.summary.weight": "pooled <- embed in choices",
        "sequence_summary.summary.bias": "pooled in choices",
        "classifier.weight": "label <- embed in token | choice <- pooled in choices",
        "classifier.bias": "label in token | choice in choices",
        "qa_outputs.weight": "span <- embed in answers",
        "qa_outputs.bias": "span in answers",
    },
    # The input of the discriminator's last layer has the width of the residual stream, too.
    streams={**BERT.streams, "judged": "embed"},
    norm=Norm(
        stream="embed",
        kind="layernorm",
        epsilon="layer_norm_eps",
        head="generator_predictions.LayerNorm",
        placement="post",
        after_embeddings="electra.embeddings.LayerNorm",
        after_attention="electra.encoder.layer.{layer}.attention.output.LayerNorm",
        after_mlp="electra.encoder.layer.{layer}.output.LayerNorm",
        summed_streams=("token",),
        activated_streams=("transformed",),
    ),
    pooled=("classifier.dense", "sequence_summary.summary"),
    optional_prefix="electra.",
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    ignored=("electra.embeddings.(position_ids|token_type_ids)",),
    residual_outputs=(
        "electra.encoder.layer.{layer}.attention.output.dense",
        "electra.encoder.layer.{layer}.output.dense",
    ),
    never_grown=("vocab", "position", "segment", "label", "choice", "span", "replaced"),
    # Two numbers that divide each other are equal. The library projects the embeddings if they are not.
    integer_expressions=("embedding_size / hidden_size or 1", "hidden_size / embedding_size or 1"),
    required_values={**BERT.required_values, "summary_use_proj": True},
    function_irrelevant_keys=(*BERT.function_irrelevant_keys, "summary_last_dropout"),
    # `embedding_size` has no default here: the library's differs from that of `hidden_size`, and config.json always states one of them.
    defaults={
        "vocab_size": 30522,
        "hidden_size": 256,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "summary_type": "first",
        "summary_use_proj": True,
        "summary_activation": "gelu",
        "summary_last_dropout": 0.1,
        "pad_token_id": 0,
        "use_cache": True,
        "classifier_dropout": None,
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    published={
        "electra-base": {
            "hidden_size": 768,
            "embedding_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "intermediate_size": 3072,
        },
        "electra-large": {
            "hidden_size": 1024,
            "embedding_size": 1024,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "intermediate_size": 4096,
        },
    },
    paper=PAPER,
    trained=TRAININGS,
)
