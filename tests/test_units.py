import pytest

from ligo_convert.units import amount, flops


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0"),
        (999, "999"),
        (12.345, "12.3"),
        (1_000, "1k"),
        (198_000, "198k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (124_439_808, "124M"),
        (8.7e9, "8.7B"),
        (999.9e9, "1T"),
        (-2_500_000, "-2.5M"),
    ],
)
def test_counts_have_three_digits_and_the_largest_unit_that_fits(number, text):
    assert amount(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(3, "3 FLOPs"), (999_999, "1 MFLOPs"), (5.42e12, "5.42 TFLOPs"), (6e21, "6e+03 EFLOPs")]
)
def test_operations_have_three_digits_and_a_prefix(number, text):
    assert flops(number) == text
