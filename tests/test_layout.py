"""The house rules that a machine can check: who imports whom, file lengths, no method's name in the loop."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "occreid_jax"
BASE = {
    "types", "errors", "config", "files", "parts", "distributed", "passes", "vocabulary", "assets", "cameras", "vectors", "chips",
}  # fmt: skip
# What each package may import beside the base modules and itself.
ALLOWED = {
    "data": set(),
    "augment": set(),
    "synthetic": set(),
    "nn": set(),
    "losses": set(),
    "banks": set(),
    "weights": {"nn"},
    "methods": {"nn", "losses", "banks", "augment", "weights", "evaluation"},
    "evaluation": {"data", "losses"},
    "train": {"data", "evaluation", "weights", "methods", "synthetic"},
    "report": {"evaluation", "data", "train"},
    "programs": {"data", "evaluation", "methods", "nn", "train", "weights"},
    "acceptance": {"train", "methods"},
    "numerics": {"augment", "banks", "losses", "nn", "weights", "evaluation", "train", "methods", "data"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module == "occreid_jax" else [node.module]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    owner = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        assert not name.startswith("absl.flags") and name != "absl.app", f"{path}: flags live in launch/ only"
        if name.startswith("jax.distributed"):
            assert owner == "distributed"
        if not name.startswith("occreid_jax."):
            continue
        target = name.split(".")[1]
        if target == owner or target in BASE or owner == "__init__":
            continue
        assert owner in ALLOWED, f"{path}: {owner} may import base modules only, not {target}"
        assert target in ALLOWED[owner], f"{path}: {owner} must not import {target}"


def test_training_and_evaluation_know_no_method_by_name():
    from occreid_jax.methods import NAMES

    pattern = re.compile(rf"\b({'|'.join(NAMES)})\b")
    for folder in ("train", "evaluation"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert not pattern.search(path.read_text()), path


@pytest.mark.parametrize("folder", ["occreid_jax", "configs", "launch", "tests"])
def test_files_read_in_one_sitting(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, path


def test_every_package_and_module_says_what_it_is():
    for path in FILES:
        if path.name != "__init__.py" or path.read_text().strip():
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_configs_do_not_import_jax():
    for path in (ROOT / "configs").glob("*.py"):
        assert not any(name.split(".")[0] in ("jax", "flax", "occreid_jax") for name in imported(path)), path


def test_the_promised_packages_are_dependencies():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy", "ml_collections", "chex"):
        assert any(re.match(rf"{package}\b", requirement) for requirement in project["dependencies"]), package


def test_lazy_names_exist():
    from occreid_jax.data.readers import READERS
    from occreid_jax.methods import NAMES

    for target in (*NAMES.values(), *READERS.values()):
        module, _, attribute = target.partition(":")
        assert hasattr(importlib.import_module(module), attribute)


def file_of(name: str) -> Path | None:
    """The file that an import of this name reads: a module, a package, or the package of something in it."""
    path = ROOT.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py", path.parent.with_suffix(".py"), path.parent / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def imported_files(path: Path) -> set[Path]:
    """Files of this package that a file imports, anywhere in it: the submodules that it names, not the packages around them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {file_of(name) for name in names if name.split(".")[0] == PACKAGE.name}
    return found - {None, path}


def test_no_file_imports_itself_through_others():
    """Imports inside functions count as well: they hide a circle and do not open it."""
    graph = {path: imported_files(path) for path in FILES}
    done: set[Path] = set()

    def walk(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, " imports ".join(str(each.relative_to(PACKAGE)) for each in (*above, path))
        if path not in done:
            for other in sorted(graph[path]):
                walk(other, (*above, path))
            done.add(path)

    for path in FILES:
        walk(path, ())


LONGEST = 60  # lines of a function, less than


@pytest.mark.parametrize("folder", ["occreid_jax", "launch", "tests"])
def test_functions_read_in_one_sitting(folder):
    """Configs are lists of settings: theirs may be longer."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines < LONGEST, f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"


def test_test_files_have_names_of_their_own():
    """Two of one name in two folders that are no packages: pytest collects one and reports an error for the other."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    assert sorted(names) == sorted(set(names))
