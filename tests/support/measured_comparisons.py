"""A condensed comparison as `outputs.measured` holds it, with made-up figures."""

from __future__ import annotations

from ligo_convert.outputs.measured import Measured, MeasuredSource

MEASURED = Measured(
    model="gpt2",
    parameters=770_000,
    seeds=3,
    tokens_per_parameter=20.0,
    batch="32 sequences of 64 tokens",
    warmup=0.02,
    optimizer="muon",
    decay=0.6,
    weight_decay=0.1,
    tried={"optimizers": ["adamw", "muon"], "decays": [0.6, 1.0], "rate_factors": [0.15, 0.4, 1.0]},
    sources=(
        MeasuredSource(
            share=0.2, method="direct", rate_factors=((0.35, 1.0), (1.0, 1.0)), paper=35.0, net=15.0, targets=1
        ),
        MeasuredSource(
            share=0.75, method="lemon", rate_factors=((0.35, 0.15), (1.0, 0.4)), paper=62.0, net=-13.0, targets=2
        ),
    ),
    ahead={"paper": [[0.2, 1.0]], "net": [[0.3, 0.3], [0.5, 0.6]]},
    smaller_wins=(6, 7),
)
