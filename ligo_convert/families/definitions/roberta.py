"""RoBERTa (Liu et al., 2019) as transformers stores it: BERT's body, positions that start after the padding id, a different head."""

from __future__ import annotations

from ligo_convert.families.schema import Family, Head, Norm, Training

PAPER = r"""@misc{liu2019roberta,
  title  = {{RoBERTa}: A Robustly Optimized {BERT} Pretraining Approach},
  author = {Liu, Yinhan and Ott, Myle and Goyal, Naman and Du, Jingfei and Joshi, Mandar and Chen, Danqi and Levy, Omer and
            Lewis, Mike and Zettlemoyer, Luke and Stoyanov, Veselin},
  year   = {2019},
  url    = {https://arxiv.org/abs/1907.11692}
}"""

_PAPER = "RoBERTa, arXiv:1907.11692"

TRAININGS = tuple(
    Training(
        parameters=parameters,
        rate=rate,
        batch="8K sequences",
        warmup=f"{warmup} of 500,000 steps",
        decay=0.01,
        paper=_PAPER,
    )
    for parameters, rate, warmup in ((125e6, 6e-4, "24,000"), (355e6, 4e-4, "30,000"))
)

ROBERTA = Family(
    name="roberta",
    model_type="roberta",
    # Trained on other text, with other tokenizers.
    other_names=("camembert", "xlm-roberta"),
    heads=(
        Head(parts=("lm",), task="masked-lm", architecture="RobertaForMaskedLM", auto_class="AutoModelForMaskedLM"),
        Head(parts=("pooler",), task="encoder", architecture="RobertaModel", auto_class="AutoModel", base=True),
        Head(
            task="encoder",
            architecture="RobertaModel",
            auto_class="AutoModel",
            base=True,
            options={"add_pooling_layer": False},
        ),
    ),
    axes={
        "embed": "hidden_size",
        "heads": "num_attention_heads",
        "head_dim": "hidden_size / num_attention_heads",
        "mlp": "intermediate_size",
        "vocab": "vocab_size",
        "position": "max_position_embeddings",
        "segment": "type_vocab_size",
        "layer": "num_hidden_layers",
    },
    streams={
        "query": "heads*head_dim",
        "key": "heads*head_dim",
        "value": "heads*head_dim",
        # The sum of the embeddings, the pooled token and the input of the head's norm have the width of the residual stream.
        "token": "embed",
        "pooled": "embed",
        "transformed": "embed",
    },
    tensors={
        "roberta.embeddings.word_embeddings.weight": "vocab -> token",
        "roberta.embeddings.position_embeddings.weight": "position -> token",
        "roberta.embeddings.token_type_embeddings.weight": "segment -> token",
        "roberta.embeddings.LayerNorm.weight": "embed gain",
        "roberta.embeddings.LayerNorm.bias": "embed shift",
        "roberta.encoder.layer.{layer}.attention.self.query.weight": "query <- embed",
        "roberta.encoder.layer.{layer}.attention.self.query.bias": "query",
        "roberta.encoder.layer.{layer}.attention.self.key.weight": "key <- embed",
        "roberta.encoder.layer.{layer}.attention.self.key.bias": "key",
        "roberta.encoder.layer.{layer}.attention.self.value.weight": "value <- embed",
        "roberta.encoder.layer.{layer}.attention.self.value.bias": "value",
        "roberta.encoder.layer.{layer}.attention.output.dense.weight": "embed <- value",
        "roberta.encoder.layer.{layer}.attention.output.dense.bias": "embed",
        "roberta.encoder.layer.{layer}.attention.output.LayerNorm.weight": "embed gain",
        "roberta.encoder.layer.{layer}.attention.output.LayerNorm.bias": "embed shift",
        "roberta.encoder.layer.{layer}.intermediate.dense.weight": "mlp <- embed",
        "roberta.encoder.layer.{layer}.intermediate.dense.bias": "mlp",
        "roberta.encoder.layer.{layer}.output.dense.weight": "embed <- mlp",
        "roberta.encoder.layer.{layer}.output.dense.bias": "embed",
        "roberta.encoder.layer.{layer}.output.LayerNorm.weight": "embed gain",
        "roberta.encoder.layer.{layer}.output.LayerNorm.bias": "embed shift",
        "roberta.pooler.dense.weight": "pooled <- embed in pooler",
        "roberta.pooler.dense.bias": "pooled in pooler",
        "lm_head.bias": "vocab in lm",
        "lm_head.dense.weight": "transformed <- embed in lm",
        "lm_head.dense.bias": "transformed in lm",
        "lm_head.layer_norm.weight": "transformed gain in lm",
        "lm_head.layer_norm.bias": "transformed shift in lm",
        "lm_head.decoder.weight": "vocab <- transformed in lm",
        "lm_head.decoder.bias": "vocab in lm",
    },
    norm=Norm(
        stream="embed",
        kind="layernorm",
        epsilon="layer_norm_eps",
        head="lm_head.layer_norm",
        placement="post",
        after_embeddings="roberta.embeddings.LayerNorm",
        after_attention="roberta.encoder.layer.{layer}.attention.output.LayerNorm",
        after_mlp="roberta.encoder.layer.{layer}.output.LayerNorm",
        summed_streams=("token",),
        activated_streams=("transformed",),
    ),
    positions="position",
    # Positions start after the padding id.
    position_offset="pad_token_id + 1",
    lookup_axes=("vocab", "position", "segment"),
    pooled=("roberta.pooler.dense",),
    optional_prefix="roberta.",
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    ignored=("roberta.embeddings.(position_ids|token_type_ids)",),
    residual_outputs=(
        "roberta.encoder.layer.{layer}.attention.output.dense",
        "roberta.encoder.layer.{layer}.output.dense",
    ),
    never_grown=("vocab", "position", "segment"),
    dot_products=(("query", "key"),),
    activation="hidden_act",
    required_values={"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"},
    function_irrelevant_keys=(
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "initializer_range",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
    ),
    defaults={
        "vocab_size": 50265,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "use_cache": True,
        "classifier_dropout": None,
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    published={
        "distilroberta-base": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 6,
            "intermediate_size": 3072,
        },
        "roberta-base": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "intermediate_size": 3072,
        },
        "roberta-large": {
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "intermediate_size": 4096,
        },
    },
    paper=PAPER,
    trained=TRAININGS,
)
