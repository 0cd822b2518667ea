"""Rules that are tests: layers, sizes, forbidden words, what an import may cost."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fqtsim

PACKAGE = Path(fqtsim.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 450, 60

# First match wins; a module imports from its own layer and from lower ones.
LAYERS = [
    ("fqtsim.errors fqtsim.words fqtsim.streams fqtsim.started", 0),
    ("fqtsim.ref fqtsim.strict_yaml fqtsim.hw", 1),
    ("fqtsim.kernels", 2),
    ("fqtsim.backends fqtsim.api fqtsim.identify", 3),
    ("fqtsim.quantizers fqtsim.recipe", 4),
    ("fqtsim.train fqtsim.models fqtsim.data", 5),
    ("fqtsim", 6),
]
# What a package may not import, though its layer stands above.
FORBIDDEN = {
    "fqtsim.errors": ("fqtsim",),
    "fqtsim.words": ("fqtsim.streams", "numpy", "torch", "numba"),
    "fqtsim.ref": ("fqtsim.hw", "fqtsim.strict_yaml", "fqtsim.kernels", "numpy", "numba", "torch"),
    "fqtsim.hw": ("fqtsim.ref", "numba", "torch"),
    "fqtsim.strict_yaml": ("fqtsim.hw", "fqtsim.ref", "pydantic"),
    "fqtsim.kernels": ("fqtsim.ref", "torch"),
    "fqtsim.backends": ("fqtsim.api",),
    "fqtsim.cost": ("fqtsim.evaluate", "fqtsim.train", "torch", "numba"),
}
ALLOWED = {"fqtsim.kernels": ("fqtsim.kernels", "fqtsim.words", "fqtsim.started", "fqtsim.hw.lower")}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def only_for_types(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(root: ast.AST, *, deferred: bool) -> Iterator[ast.AST]:
    """Yield the nodes that run; those inside functions only where `deferred`."""
    for child in ast.iter_child_nodes(root):
        if isinstance(child, ast.If) and only_for_types(child):
            continue
        if not deferred and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from nodes(child, deferred=deferred)


def imports(file: Path, *, deferred: bool = True) -> set[str]:
    """Return the modules that a file imports, submodules by their own names."""
    found = set()
    for node in nodes(tree(file), deferred=deferred):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: write imports in full"
            base = node.module or ""
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return found


def within(name: str, packages: str | tuple[str, ...]) -> bool:
    names = packages.split() if isinstance(packages, str) else packages
    return any(name == package or name.startswith(f"{package}.") for package in names)


def layer(name: str) -> int:
    return next(number for packages, number in LAYERS if within(name, packages))


def test_modules_import_only_from_their_own_layer_and_below() -> None:
    wrong = []
    for name, file in MODULES.items():
        for other in imports(file):
            root = name == "fqtsim" or other == "fqtsim"  # the public names, imported on first use
            if within(other, "fqtsim") and not root and layer(other) > layer(name):
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_what_a_package_may_not_know() -> None:
    wrong = []
    for name, file in MODULES.items():
        for other in imports(file):
            for package, forbidden in FORBIDDEN.items():
                device_form = within(name, "fqtsim.kernels.gpu") and within(other, "torch")
                if (
                    within(name, package)
                    and within(other, forbidden)
                    and not within(other, package)
                    and not device_form
                ):
                    wrong.append(f"{name} imports {other}")
            for package, allowed in ALLOWED.items():
                if within(name, package) and within(other, "fqtsim") and not within(other, allowed):
                    wrong.append(f"{name} imports {other}")
    assert not wrong


def test_few_may_use_the_reference() -> None:
    """Where a fast path leaned on the definition, a test that compares the two would prove nothing."""
    users = {name for name, file in MODULES.items() if any(within(other, "fqtsim.ref") for other in imports(file))}
    runtime = {name for name in users if not within(name, "fqtsim.ref") and layer(name) < 6}
    # make_primitive_vectors writes the adversarial vectors and is never imported.
    assert runtime == {"fqtsim.backends.reference", "fqtsim.api.explain", "fqtsim.backends.make_primitive_vectors"}


def test_no_import_cycle() -> None:
    graph = {
        name: {other for other in imports(file, deferred=False) if other in MODULES and other != name}
        for name, file in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_are_short(name: str) -> None:
    file = MODULES[name]
    lines = file.read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES, f"{file}: {lines} lines"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MOST_LINES_OF_A_FUNCTION, f"{file}:{node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name: str) -> None:
    if tree(MODULES[name]).body:
        assert ast.get_docstring(tree(MODULES[name])), f"{name} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_forbidden_words(name: str) -> None:
    """fastmath deletes exact tricks; cache=True does not see an edit in a callee of another file (decision 3)."""
    text = MODULES[name].read_text(encoding="utf-8")
    for marker in ("TO" + "DO", "FIX" + "ME", "XX" + "X"):
        assert not re.search(rf"\b{marker}\b", text), marker
    for node in ast.walk(tree(MODULES[name])):
        if isinstance(node, ast.keyword):
            assert node.arg not in ("fastmath", "reassoc"), f"{name}: {node.arg}"
            truth = isinstance(node.value, ast.Constant) and node.value.value is True
            assert not (node.arg == "cache" and truth), f"{name}: cache=True"
        if isinstance(node, ast.Assert) and not within(name, ("fqtsim.ref",)):
            pytest.fail(f"{name}:{node.lineno}: assert is no check of user input")


FLOAT_TRAPS = {"addcmul", "addcmul_", "addcdiv", "addcdiv_", "lerp", "lerp_", "compile", "rsqrt", "fma"}


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, ("fqtsim.train", "fqtsim.backends"))])
def test_no_torch_call_that_rounds_in_its_own_way(name: str) -> None:
    """Each found wrong or fused somewhere (S5, traps): torch.sqrt misrounds on CPUs, addcmul and lerp fuse."""
    for node in ast.walk(tree(MODULES[name])):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        method, owner = node.func.attr, ast.unparse(node.func.value)
        fused = method in ("add", "add_", "sub", "sub_") and any(keyword.arg == "alpha" for keyword in node.keywords)
        assert not fused, f"{name}:{node.lineno}: {method}(alpha=) fuses on some instruction sets"
        assert not (owner == "torch" and method in FLOAT_TRAPS | {"sqrt", "rand", "randn", "dropout"}), (
            f"{name}:{node.lineno}: torch.{method}"
        )
        assert method not in FLOAT_TRAPS - {"compile"}, f"{name}:{node.lineno}: .{method}"


@pytest.mark.parametrize("name", [name for name in fqtsim.__all__ if name != "__version__"])
def test_public_names_are_documented(name: str) -> None:
    found = getattr(fqtsim, name)
    doc = found.__doc__
    assert doc, name
    assert not doc.startswith(f"{name}("), "a generated docstring"
    assert doc.splitlines()[0].endswith((".", ":")), f"{name}: {doc.splitlines()[0]!r}"


def test_public_names_are_listed_once() -> None:
    assert len(set(fqtsim.__all__)) == len(fqtsim.__all__)
    assert set(dir(fqtsim)) == set(fqtsim.__all__)
    with pytest.raises(AttributeError, match=r"^module 'fqtsim' has no attribute 'nothing'$"):
        fqtsim.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import fqtsim", "torch numba numpy yaml pydantic rich"),
        ("import fqtsim; fqtsim.load_hardware('int8_acc32_wrap')", "torch numba"),
        ("import fqtsim; fqtsim.round_shift(5, 1, 'to_odd')", "torch"),
        ("import fqtsim.ref.gemm, fqtsim.ref.requantize", "torch numba numpy"),
    ],
)
def test_what_an_import_brings_along(program: str, unwanted: str) -> None:
    code = f"{program}\nimport sys\nprint(*sorted(set({unwanted.split()!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_the_rules_can_fail() -> None:
    """The checks above, on sources that break them."""
    source = ast.parse("if TYPE_CHECKING:\n    import torch\nimport numba\ndef f():\n    import yaml\n")
    names = [
        alias.name for node in nodes(source, deferred=True) if isinstance(node, ast.Import) for alias in node.names
    ]
    assert names == ["numba", "yaml"]
    assert [type(node) for node in nodes(source, deferred=False)] == [ast.Import, ast.alias]
    assert (layer("fqtsim.ref.gemm"), layer("fqtsim.api.compare"), layer("fqtsim.cli.train")) == (1, 3, 6)
    assert within("fqtsim.kernels.gemm", "fqtsim.kernels")
    assert not within("fqtsim.kernels2", "fqtsim.kernels")
