"""The table of promises is whole: every guard stands where the table says, and every test that it names exists.

`scripts/mutate_guards.py` proves the guards: it breaks each and sees its tests fail. That takes minutes, so it is not part of the suite.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support.promises import PROMISES, Guard

import ligo_convert

ROOT = Path(__file__).parents[2]
GUARDS = [(promise.number, guard) for promise in PROMISES for guard in promise.guards]


def test_every_promise_is_kept_by_a_guard() -> None:
    assert [promise.number for promise in PROMISES] == [f"P{number}" for number in range(1, 1 + len(PROMISES))]
    assert [promise.number for promise in PROMISES if not promise.guards] == []
    kept = [guard.keeps for _, guard in GUARDS]
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize("guard", [guard for _, guard in GUARDS], ids=lambda guard: guard.keeps)
def test_a_guard_stands_in_its_file_once(guard: Guard) -> None:
    source = (Path(ligo_convert.__file__).parent / guard.file).read_text(encoding="utf-8")
    assert source.count(guard.text) == 1
    ast.parse(source.replace(guard.text, guard.broken))


@pytest.mark.parametrize("guard", [guard for _, guard in GUARDS], ids=lambda guard: guard.keeps)
def test_the_tests_of_a_guard_exist(guard: Guard) -> None:
    assert guard.tests
    for test in guard.tests:
        file, _, name = test.partition("::")
        functions = {
            node.name
            for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)
        }
        assert name.partition("[")[0] in functions, test
