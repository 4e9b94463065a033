"""The architecture as a table that is checked: every package has a layer, and imports only from layers below its own."""

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

# Layer by layer, from the ground up. A package imports only from layers below its own; packages of one layer do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("base",),
    ("io",),
    ("checkpoints",),
    ("families", "data", "importing"),
    ("growth", "hub"),
    ("recipes",),
    ("training",),
    ("outputs",),
    ("conversion",),
    ("comparison", "batch"),
    ("cli",),
    ("api",),
)
# Modules that belong to no package: those that everything may use, and the ways in.
ROOT_MODULES = {
    "base": ("errors", "limits", "progress", "environment", "signals", "units", "workers"),
    "api": ("__init__", "api", "in_memory"),
}
ROOT_SENTENCES = {
    "base": "Exceptions, limits, the progress protocol, facts of the machine, signals, units of figures, worker processes:"
    " everything may use them.",
    "api": "The public Python API.",
}
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages}
PACKAGE_OF_ROOT = {module: package for package, modules in ROOT_MODULES.items() for module in modules}
# `python -m ligo_convert` is the command line by another name.
PACKAGE_OF_ROOT["__main__"] = "cli"

# Slow to import. Only modules that work on tensors or run models may name them outside functions, and nobody else may
# import those modules outside functions.
HEAVY_LIBRARIES = {"torch", "transformers", "timm", "tokenizers", "datasets", "huggingface_hub", "matplotlib"}
HEAVY_MODULES = {
    "checkpoints.torch_io",
    "conversion.model_pair",
    "growth.apply",
    "growth.mean_preserving",
    "growth.moments",
    "growth.rewrites",
    "training.fit",
    "training.follower",
    "training.functional_model",
    "training.given_model",
    "training.drop_hooks",
    "training.loop",
    "training.model_tensors",
    "training.muon",
    "training.objectives",
    "training.optimizers",
    "training.preservation",
    "training.parameter_order",
    "training.pretrain",
    "training.processes",
    "training.ring_fit",
    "training.run_trainer",
    "training.streamed",
    "training.tasks",
    "comparison.worker",
    "importing.sharded",
    "in_memory",
}

MAY_IMPORT_CONVERT = {"cli.main", "conversion.run", "api"}

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


def package_of(module: str) -> str:
    """The package that a module belongs to; `base` and `api` stand for the modules that belong to none."""
    head = module.partition(".")[0]
    return PACKAGE_OF_ROOT.get(module, head)


def own_imports(module: str) -> set[str]:
    """The modules of this package that a module imports, wherever the import stands."""
    return {name for item in IMPORTS[module] if (name := own(item)) and name != module}


def sentence_of(module: str) -> str:
    """The docstring of a module, as one line."""
    return " ".join((ast.get_docstring(ast.parse(FILES[module].read_text(encoding="utf-8"))) or "").split())


def test_imports_are_seen_wherever_they_stand() -> None:
    source = (
        "from typing import TYPE_CHECKING\nimport numpy as np\nfrom ligo_convert.growth import maps\n"
        "if TYPE_CHECKING:\n    from ligo_convert.training.fit import FitSettings\nelse:\n    import json\n"
        "try:\n    import torch\nexcept ImportError:\n    torch = None\n"
        "class A:\n    import os\n    def f(self):\n        import timm\n"
    )
    found = {(item.module, item.when) for item in imports_of(source)}
    assert {
        ("numpy", "import"),
        ("ligo_convert.growth.maps", "import"),
        ("ligo_convert.training.fit", "types"),
        ("json", "import"),
        ("torch", "import"),
        ("os", "import"),
        ("timm", "call"),
    } <= found
    assert ("timm", "import") not in found


def test_every_module_belongs_to_a_package_of_the_table() -> None:
    unknown = {module for module in FILES if package_of(module) not in LAYER}
    assert not unknown, "put these modules into a package, or their package into LAYERS"
    assert {package_of(module) for module in FILES} == set(LAYER), "LAYERS names a package that does not exist"


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_package_imports_only_from_layers_below(module: str) -> None:
    package = package_of(module)
    wrong = sorted(
        name
        for name in own_imports(module)
        if (other := package_of(name)) != package and LAYER[other] >= LAYER[package]
    )
    assert not wrong, f"{module} (layer {LAYER[package]}) imports {', '.join(wrong)}"


def test_modules_of_a_package_import_each_other_in_one_direction() -> None:
    """No circle of imports anywhere, those inside functions included; imports for type checkers are left out."""
    edges = {
        module: {name for item in IMPORTS[module] if item.when != "types" and (name := own(item)) and name != module}
        for module in FILES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle of imports: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for name in sorted(edges[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in sorted(FILES):
        visit(module, ())


@pytest.mark.parametrize("package", sorted({name for name in FILES if (PACKAGE / name.replace(".", "/")).is_dir()}))
def test_a_package_says_in_one_sentence_what_it_is(package: str) -> None:
    sentence = sentence_of(package)
    assert sentence.endswith("."), f"{package}/__init__.py has no sentence"
    assert len(re.findall(r"[.!?](?= |$)", sentence)) == 1, f"{package}/__init__.py has more than one sentence"
    assert not own_imports(package), f"{package}/__init__.py re-exports names: import them from where they are defined"


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
        if any(own(item) == "conversion.convert" and item.when != "types" for item in imports)
    }
    assert "cli.main" in callers
    assert callers <= MAY_IMPORT_CONVERT


def test_growing_and_learning_share_growth_and_streams_know_no_fit() -> None:
    names = {module: {own(item) for item in IMPORTS[module]} for module in ("growth.stream", "training.fit")}
    assert "growth.apply" in names["growth.stream"] & names["training.fit"]
    assert "training.fit" not in names["growth.stream"]


@pytest.mark.parametrize("module", sorted(name for name in FILES if name.startswith("families.definitions.")))
def test_a_family_is_data(module: str) -> None:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    code = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.For)]
    assert not code, f"line {code[0].lineno}: a family's file holds data alone"
    used = {name for item in IMPORTS[module] if (name := own(item))}
    assert {name for name in used if not name.startswith("families.definitions.")} <= {"families.schema"}


def test_what_must_start_fast_loads_nothing_heavy() -> None:
    """The rules above, seen from outside: a fresh interpreter that has imported what `plan`, `inspect` and `--help` use."""
    light = ["cli.main", "cli.inspect", "cli.reports", "conversion.plan", "recipes.recipe", "families.registry"]
    lines = [f"import ligo_convert.{module}" for module in light]
    lines += ["import sys", f"print(*[name for name in {sorted(HEAVY_LIBRARIES)!r} if name in sys.modules])"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
