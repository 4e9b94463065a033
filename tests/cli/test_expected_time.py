"""The time that a plan expects: from the speed of a matrix product here, and nothing where a GPU is likely."""

from __future__ import annotations

from pathlib import Path

import pytest

from ligo_convert.cli import expected_time
from ligo_convert.cli.expected_time import FASTEST, SLOWEST, expected_seconds, product_speed


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four cores, 100 GFLOP/s, no GPU."""
    monkeypatch.setattr(expected_time, "_GPU", tmp_path / "nvidia0")
    monkeypatch.setattr(expected_time, "cores", lambda: 4)
    monkeypatch.setattr(expected_time, "product_speed", lambda: 1e11)


def test_the_time_follows_from_flops_speed_and_threads() -> None:
    assert expected_seconds(1e12, threads=4) == pytest.approx((10 / FASTEST, 10 / SLOWEST))
    assert expected_seconds(1e12, threads=1) == pytest.approx((40 / FASTEST, 40 / SLOWEST))
    # More threads than cores make nothing faster.
    assert expected_seconds(1e12, threads=64) == pytest.approx((10 / FASTEST, 10 / SLOWEST))


def test_a_machine_with_a_gpu_gets_no_estimate(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    assert expected_seconds(1e12, threads=4) is None


def test_a_product_has_a_speed() -> None:
    assert 1e8 < product_speed() < 1e14
