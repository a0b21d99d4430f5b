"""Who may import whom, read from the syntax trees: the rule of docs/architecture.md."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "regard"
GROUND = {"errors", "files", "say", "settings", "results"}  # which every room may use
MAY = {
    "backbones": set(),
    "attention": {"backbones"},
    "evaluation": {"backbones"},
    "training": {"backbones"},
    "ssl": {"backbones", "attention", "evaluation", "training"},
    "segmentation": {"backbones", "attention", "evaluation", "training"},
    "data": set(),
    "download": {"data"},
    "scoring": {"backbones", "attention", "evaluation", "data"},
    "pictures": {"backbones", "attention", "evaluation", "data"},
    "reports": {"evaluation", "pictures"},
}
MAY["runs"] = set(MAY) - {"reports"}
MAY["studies"] = set(MAY)
MAY["cli"] = set(MAY)
MAY |= {name: set() for name in GROUND} | {"__init__": {"backbones", "runs"}, "__main__": {"cli"}}
FILES = sorted(ROOT.rglob("*.py"))


@cache
def imports(file: Path) -> frozenset[Path]:
    """The files of ours that a file imports, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = ROOT.parent.joinpath(*name.split("."))
            found |= {there for there in (path.with_suffix(".py"), path / "__init__.py") if there.is_file()}
    return frozenset(found - {file})


def room(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_only_from_rooms_that_its_own_may_use(file: Path) -> None:
    used = {room(other) for other in imports(file)} - {"__init__"}
    assert used <= MAY[room(file)] | GROUND | {room(file)}


def test_no_two_files_import_each_other_in_a_circle() -> None:
    ended: set[Path] = set()

    def visit(file: Path, way: tuple[Path, ...]) -> None:
        assert file not in way, " -> ".join(str(f.relative_to(ROOT)) for f in (*way[way.index(file) :], file))
        if file not in ended:
            for other in sorted(imports(file)):
                visit(other, (*way, file))
            ended.add(file)

    for file in FILES:
        visit(file, ())


def test_every_room_is_known_and_none_holds_over_a_quarter_of_the_lines() -> None:
    lines: dict[str, int] = {}
    for file in FILES:
        lines[room(file)] = lines.get(room(file), 0) + len(file.read_text().splitlines())
    assert set(lines) <= set(MAY)
    assert max(lines.values()) <= sum(lines.values()) / 4, lines
