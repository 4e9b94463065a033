"""The architecture as a table that is checked: every module has a floor, and imports only from floors below its own."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import ligo_convert

PACKAGE = Path(ligo_convert.__file__).parent

# Floor by floor, from the ground up: what the floor is for, and who lives there.
FLOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("words", ("errors", "tensors", "values", "axes", "maps", "permutation", "progress", "schedules", "hub_names")),
    (
        "single texts and files",
        (
            "fs",
            "excerpts",
            "jsoncore",
            "globs",
            "text_files",
            "image_files",
            "examples",
            "markdown",
            "private",
            "environment",
            "presence",
            "signals",
            "yamldump",
            "recipe_sections",
            "licensing",
            "crew",
        ),
    ),
    (
        "formats, and growth as data",
        (
            "yamlcore",
            "headers",
            "staging",
            "shelf",
            "claims",
            "sums",
            "tables",
            "torchio",
            "family",
            "methods",
            "operator",
            "masking",
            "images",
        ),
    ),
    (
        "files that are made of them, and the mathematics",
        (
            "recipe_faults",
            "writer",
            "digests",
            "corpus",
            "provenance",
            "added",
            "picture",
            "comparison_picture",
            "start",
            "strategies",
            "flops",
            "rewrites",
            "tasks",
            "training",
        ),
    ),
    (
        "recipes, families, growth, who is compared",
        ("recipe", "families", "initial", "carrying", "checkpoint_files", "accounting", "contenders", "report"),
    ),
    (
        "reaching out, and streams",
        ("jobs", "manifest", "inputs", "configs", "checkpoint_layout", "hub", "tokenization", "card", "growth"),
    ),
    ("sources, data, the library's models", ("source", "data", "models", "stored", "stream")),
    ("measuring and learning", ("measure", "fit", "dropping")),
    ("what is learned by", ("objectives", "pretrain")),
    ("the plan, one training run, and what is written beside weights", ("plan", "inspection", "output", "course")),
    (
        "the steps of a run, the plan of a comparison, and growth without files",
        ("learning", "verify", "api", "contest"),
    ),
    ("writing, and what is recorded of it; the jobs of a comparison", ("writing", "opening", "workshop", "agenda")),
    ("the record", ("record",)),
    ("what is there already", ("finished",)),
    ("the pipeline, the comparison, and what is published", ("convert", "apply", "compare", "publication")),
    ("what the Hub says to it", ("answers",)),
    ("a repository of the Hub that is written to", ("remote",)),
    ("to the Hub", ("publish",)),
    ("a recipe from end to end", ("deliver",)),
    ("an entry, wherever it is done", ("work",)),
    ("who does it", ("engines",)),
    ("many recipes", ("batch",)),
    ("what people look at", ("render",)),
    ("the command line", ("cli",)),
    ("ways in", ("__init__", "__main__")),
)
FLOOR = {module: number for number, (_, modules) in enumerate(FLOORS) for module in modules}
# A family's file is found by being there, and may build on another's: they share a floor of their own, below the table of all.
FLOOR |= {
    f"families.{path.stem}": FLOOR["families"] - 1
    for path in (PACKAGE / "families").glob("*.py")
    if path.stem != "__init__"
}

# Slow to import. Only modules that work on tensors or run models may name them outside functions, and nobody else may
# import those modules outside functions.
HEAVY_LIBRARIES = {"torch", "transformers", "timm", "tokenizers", "datasets", "huggingface_hub", "matplotlib"}
HEAVY_MODULES = {
    *(
        "torchio",
        "rewrites",
        "carrying",
        "growth",
        "tasks",
        "models",
        "training",
        "measure",
        "fit",
        "objectives",
        "pretrain",
        "api",
        "dropping",
        "course",
        "workshop",
    ),
}

MAY_IMPORT_CONVERT = {"cli", "__init__", "deliver"}

When = Literal["import", "call", "types"]


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module: a whole dotted name, and when it is imported: with the module, in a function, never."""

    module: str
    when: When


def imports_of(source: str) -> list[Import]:
    """Every import of a module's source, wherever it stands."""

    def walk(node: ast.AST, when: When) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(module=alias.name, when=when) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "relative imports are not used"
                assert child.module is not None
                # `from package import module` names a module, too.
                yield Import(module=child.module, when=when)
                yield from (Import(module=f"{child.module}.{alias.name}", when=when) for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for statement in child.body:
                    yield from walk(ast.Module(body=[statement], type_ignores=[]), "types")
                for statement in child.orelse:
                    yield from walk(ast.Module(body=[statement], type_ignores=[]), when)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, "call" if inside and when == "import" else when)

    return list(walk(ast.parse(source), "import"))


def module_files() -> dict[str, Path]:
    """Module -> file; `families` is the package of that name, `__init__` the package itself."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1]) if parts[-1] == "__init__" and len(parts) > 1 else ".".join(parts)
        files[name] = path
    return files


FILES = module_files()
IMPORTS = {module: imports_of(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def own(found: Import) -> str | None:
    """The module of this package that an import names; None for another's, and for a name inside a module."""
    if found.module == "ligo_convert":
        return None  # `from ligo_convert import x`: x follows, by its own name
    head, _, name = found.module.partition(".")
    return name if head == "ligo_convert" and name in FILES else None


def first_sentence(module: str) -> str:
    """What a module's docstring says it is, up to the first full stop."""
    text = ast.get_docstring(ast.parse(FILES[module].read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"\.(?= [A-Z`]|$)", paragraph)[0]


def test_imports_are_seen_wherever_they_stand() -> None:
    source = (
        "from typing import TYPE_CHECKING\nimport numpy as np\nfrom ligo_convert import maps\n"
        "if TYPE_CHECKING:\n    from ligo_convert.fit import Settings\nelse:\n    import json\n"
        "try:\n    import torch\nexcept ImportError:\n    torch = None\n"
        "class A:\n    import os\n    def f(self):\n        import timm\n"
    )
    found = {(item.module, item.when) for item in imports_of(source)}
    assert {
        ("numpy", "import"),
        ("ligo_convert.maps", "import"),
        ("ligo_convert.fit", "types"),
        ("json", "import"),
        ("torch", "import"),
        ("os", "import"),
        ("timm", "call"),
    } <= found
    assert ("timm", "import") not in found


def test_every_module_has_one_floor() -> None:
    listed = [module for _, modules in FLOORS for module in modules]
    assert len(listed) == len(set(listed)), "a module lives on two floors"
    assert set(listed) - set(FILES) == set(), "the table names modules that are not there"
    families = {name for name in FILES if name.startswith("families.")}
    assert set(FILES) - set(listed) == families, "give these modules a floor"


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_imports_only_from_floors_below(module: str) -> None:
    floor = FLOOR[module]
    wrong = sorted({name for item in IMPORTS[module] if (name := own(item)) and FLOOR[name] >= floor})
    if module.startswith("families."):
        wrong = [name for name in wrong if not name.startswith("families.")]
    assert not wrong, f"{module} (floor {floor}) imports {', '.join(f'{name} (floor {FLOOR[name]})' for name in wrong)}"


@pytest.mark.parametrize("module", sorted(set(FILES) - HEAVY_MODULES))
def test_light_modules_stay_light(module: str) -> None:
    at_import = [item for item in IMPORTS[module] if item.when == "import"]
    libraries = {item.module.partition(".")[0] for item in at_import} & HEAVY_LIBRARIES
    assert not libraries, f"import {', '.join(sorted(libraries))} inside the functions that need it"
    modules = {name for item in at_import if (name := own(item)) in HEAVY_MODULES}
    assert not modules, f"import {', '.join(sorted(modules))} inside the functions that need it: it brings torch along"


def test_modules_called_heavy_are() -> None:
    for module in HEAVY_MODULES:
        at_import = {item.module.partition(".")[0] for item in IMPORTS[module] if item.when == "import"}
        brings = {own(item) for item in IMPORTS[module] if item.when == "import"} & HEAVY_MODULES
        assert at_import & HEAVY_LIBRARIES or brings, f"{module} is light: take it off the list"


def test_nobody_imports_the_pipeline_but_its_callers() -> None:
    callers = {
        module
        for module, imports in IMPORTS.items()
        if any(own(item) == "convert" and item.when != "types" for item in imports)
    }
    assert "cli" in callers
    assert callers <= MAY_IMPORT_CONVERT


def test_growing_and_learning_share_growth_and_streams_know_no_fit() -> None:
    names = {module: {own(item) for item in IMPORTS[module]} for module in ("stream", "fit")}
    assert "growth" in names["stream"] & names["fit"]
    assert "fit" not in names["stream"]


@pytest.mark.parametrize("module", sorted(name for name in FILES if name.startswith("families.")))
def test_a_family_is_data(module: str) -> None:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    code = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.For)]
    assert not code, f"line {code[0].lineno}: a family's file holds data alone"
    used = {name for item in IMPORTS[module] if (name := own(item))}
    assert {name for name in used if not name.startswith("families.")} <= {"family"}


def test_what_must_start_fast_loads_nothing_heavy() -> None:
    """The rules above, seen from outside: a fresh interpreter that has imported what `plan`, `inspect` and `--help` use."""
    light = ["cli", "plan", "inspection", "render", "recipe", "families"]
    lines = [f"import ligo_convert.{module}" for module in light]
    lines += ["import sys", f"print(*[name for name in {sorted(HEAVY_LIBRARIES)!r} if name in sys.modules])"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
