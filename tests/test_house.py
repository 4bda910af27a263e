"""The house rules that a machine can check: who imports whom, and how long things get."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestrator", "kernels", "jobs")

# The allowed arrows: module prefix → what of ours it may import.
INTEGERS = {
    "kernels.shapes",
    "kernels.checkpoints.configs",
    "kernels.memory",
    "kernels.offload.plan",
    "kernels.placement",
    "kernels.strategies",
    "kernels.pipeline.schedule",
    "kernels.pipeline.partition",
    "kernels.pipeline.layer_costs",
    "kernels.spans",
}
BRIDGE = {
    "orchestrator.case",
    "orchestrator.checkout",
    "orchestrator.record",
    "orchestrator.environment",
    "orchestrator.study.files",
    "orchestrator.study.ledger",
    "orchestrator.files",
    "orchestrator.job_spec",
    "orchestrator.errors",
    "orchestrator.causes.finding",
    "orchestrator.causes.signatures",
}


def sources(package: str) -> list[Path]:
    return sorted((CHECKOUT / package).rglob("*.py"))


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(
        ".__init__"
    )


def imported(file: Path) -> Iterator[str]:
    """Every module the file imports, at any depth of nesting; `from a import b` as a.b too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative imports hide the arrows"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(package: str) -> Iterator[tuple[str, str]]:
    """(module, what of ours it imports), the latter cut to the module."""
    modules = {module_name(file) for name in PACKAGES for file in sources(name)}
    for file in sources(package):
        for name in imported(file):
            if name.split(".")[0] in PACKAGES:
                yield (
                    module_name(file),
                    name if name in modules else name.rpartition(".")[0],
                )


def test_the_orchestrator_imports_only_itself_and_integers() -> None:
    outside = [
        (module, name)
        for module, name in arrows("orchestrator")
        if not name.startswith("orchestrator") and name not in INTEGERS
    ]
    assert outside == []


def test_kernels_import_nothing_of_ours() -> None:
    assert [
        pair for pair in arrows("kernels") if not pair[1].startswith("kernels")
    ] == []


def test_kernels_hold_no_clock() -> None:
    clocks = [
        (module_name(file), name)
        for file in sources("kernels")
        for name in imported(file)
        if name.split(".")[0] == "time"
    ]
    assert clocks == []


def test_integer_modules_import_only_each_other() -> None:
    pairs = [pair for pair in arrows("kernels") if pair[0] in INTEGERS]
    assert [pair for pair in pairs if pair[1] not in INTEGERS] == []


def test_jobs_reach_the_orchestrator_only_over_the_bridge() -> None:
    outside = [
        (module, name)
        for module, name in arrows("jobs")
        if name.startswith("orchestrator") and name not in BRIDGE
    ]
    assert outside == []


def test_no_package_of_ours_imports_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for package in PACKAGES:
        for module, name in arrows(package):
            graph.setdefault(module, set()).add(name)
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' → '.join((*trail, module))}"
        if module not in done:
            for name in graph.get(module, set()) - {module}:
                walk(name, (*trail, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def test_the_login_node_never_imports_torch() -> None:
    modules = [module_name(file) for file in sources("orchestrator")]
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0


def test_starting_orch_imports_only_click_and_the_standard_library() -> None:
    code = "import orchestrator.cli, sys; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {
        "pydantic",
        "pandas",
        "numpy",
        "rich",
        "yaml",
        "submitit",
        "jinja2",
        "matplotlib",
    }
    assert not heavy & set(run.stdout.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_has_more_than_300_lines(package: str) -> None:
    long = {str(file): len(file.read_text().splitlines()) for file in sources(package)}
    assert {file: lines for file, lines in long.items() if lines > 300} == {}


def test_functions_stay_small() -> None:
    lengths = {
        f"{module_name(file)}:{node.lineno} {node.name}": (node.end_lineno or 0)
        - node.lineno
        + 1
        for package in PACKAGES
        for file in sources(package)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}
    assert median(lengths.values()) <= 10


def test_every_module_says_what_it_is_for() -> None:
    files = [file for package in PACKAGES for file in sources(package)]
    assert [
        str(file)
        for file in files
        if not ast.get_docstring(ast.parse(file.read_text()))
    ] == []
