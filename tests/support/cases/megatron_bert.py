from support.case import BERT, like

CASES = {
    "megatron_bert": like(BERT, config={"layer_norm_eps": 1e-4}, thorough=False),
    "megatron_bert encoder": like(
        BERT, config={}, architecture="MegatronBertModel", family="megatron_bert", thorough=False
    ),
}

FULL_SIZE = [{"architectures": [name]} for name in ("MegatronBertForPreTraining", "MegatronBertForMaskedLM")]

STATED = {"megatron-bert-345m": 335}
