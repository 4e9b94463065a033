from support.case import BERT, like

CASES = {"nomic_bert": like(BERT, config={}, thorough=False, grid=True)}

FULL_SIZE = [{"architectures": [name]} for name in ("NomicBertForMaskedLM", "NomicBertModel")]
