"""What each task asks for, and the loss of knowing no more than how frequent its answers are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ligo_convert.data.examples import IGNORED, ArrayExamples, TokenExamples
from ligo_convert.training.tasks import TASKS, frequency_loss


def entropy(*shares: float) -> float:
    return -sum(share * math.log(share) for share in shares)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_loss_of_frequencies_is_the_entropy_of_what_is_asked_for(batch_size: int) -> None:
    text = TokenExamples(blocks=np.array([[9, 1, 1, 2], [9, 1, 1, 5], [9, 2, 2, 5]], dtype=np.uint16))
    # The first token of a block is not predicted, so 9 does not count.
    expected = entropy(4 / 9, 3 / 9, 2 / 9)
    assert frequency_loss(TASKS["causal-lm"], text, batch_size=batch_size) == pytest.approx(expected)
    labels = np.array([[IGNORED, 3, IGNORED], [7, IGNORED, IGNORED], [IGNORED, IGNORED, 3]])
    masked = ArrayExamples(arrays={"input_ids": np.zeros_like(labels), "labels": labels})
    assert frequency_loss(TASKS["masked-lm"], masked, batch_size=batch_size) == pytest.approx(entropy(2 / 3, 1 / 3))
    images = ArrayExamples(arrays={"pixel_values": np.zeros((4, 1)), "labels": np.array([0, 1, 2, 3])})
    found = frequency_loss(TASKS["image-classification"], images, batch_size=batch_size)
    assert found == pytest.approx(math.log(4))
    assert frequency_loss(TASKS["encoder"], text, batch_size=batch_size) is None
