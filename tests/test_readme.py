"""The README tells the truth: its links, its tree of files, its commands."""

import json
import re
from pathlib import Path

import click
import pytest

from orchestrator.cli import VERBS, orch
from orchestrator.clusters.cluster import load_cluster
from orchestrator.grids.grid import load_grid

CHECKOUT = Path(__file__).resolve().parent.parent
README = CHECKOUT / "README.md"
DOCUMENTS = [README, CHECKOUT / "CONTRIBUTING.md", CHECKOUT / "results" / "README.md"]


def yaml_blocks() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)


def tree_entries() -> set[str]:
    """Folders of the annotated tree."""
    block = re.search(r"```text tree\n(.*?)```", README.read_text(), re.DOTALL)
    assert block, "README.md has no ```text tree block"
    return {line.split("#")[0].strip() for line in block[1].splitlines()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_every_link_into_the_checkout_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text())
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (document.parent / link).exists()] == []


def test_the_tree_names_every_folder_and_nothing_else() -> None:
    outer = {"orchestrator", "kernels", "jobs", "templates", "tests", "results"}
    inner = {
        str(file.parent.relative_to(CHECKOUT))
        for package in ("orchestrator", "kernels", "jobs")
        for file in (CHECKOUT / package).rglob("*")
        if file.suffix in (".py", ".yaml", ".json")
    }
    assert tree_entries() == {f"{folder}/" for folder in outer | inner}


def test_every_make_target_it_names_exists() -> None:
    targets = set(
        re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    )
    named = set(
        re.findall(
            r"`make ([a-z-]+)[^`]*`|^\$? ?make ([a-z-]+)",
            README.read_text(),
            re.MULTILINE,
        )
    )
    assert {first or second for first, second in named} <= targets


def test_every_orch_command_and_option_it_names_exists() -> None:
    for line in re.findall(
        r"(?:^\$ |`)orch ([a-z]+[^`\n]*)", README.read_text(), re.MULTILINE
    ):
        verb, *words = line.split("#")[0].split("|")[0].split(">")[0].split()
        command = orch.get_command(click.Context(orch), verb)
        assert isinstance(command, click.Command), f"orch {verb}"
        options = {name for parameter in command.params for name in parameter.opts}
        assert {
            word.split("=")[0] for word in words if word.startswith("--")
        } <= options, line


def test_the_grid_it_shows_is_one(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(yaml_blocks()[0])
    cases = load_grid(file, dry_run=True).cases
    assert {case.gpus for case in cases} == {1, 2, 4}


def test_the_profile_it_shows_is_one(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(yaml_blocks()[1])
    cluster = load_cluster(file)
    assert (cluster.name, cluster.case_time_s) == ("my", 7200)
    assert cluster.devices == load_cluster("sol").devices


def test_it_names_every_command_and_every_key_of_a_grid() -> None:
    text = README.read_text()
    assert [verb for verb in VERBS if f"| `orch {verb}" not in text] == []
    definitions = json.loads((CHECKOUT / "jobs/grids/schema.json").read_text())
    shape = {"ModelShape", "RopeScaling"}  # the inside of `random`
    keys = set(definitions["properties"])
    for name, definition in definitions["$defs"].items():
        for described in (definition, *definition.get("anyOf", ())):
            keys |= set(described.get("properties", ())) if name not in shape else set()
    assert len(keys) > 30
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []
