"""Who may import whom (design, section 1), read from the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "regard"
MAY = {
    "errors": set(),
    "data": set(),
    "backbones": set(),
    "attention": {"backbones"},
    "ssl": {"backbones", "attention", "evaluation"},
    "evaluation": {"backbones", "attention"},
    "segmentation": {"backbones", "attention", "evaluation"},
    "studies": {"data", "backbones", "attention", "ssl", "evaluation", "segmentation"},
    "explore": {"backbones", "attention", "data", "segmentation"},
    "__init__": {"backbones", "studies"},
    "__main__": {"cli"},
}
FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_what_its_layer_may(file: Path) -> None:
    layer = file.relative_to(ROOT).parts[0].removesuffix(".py")
    if layer == "cli":
        return
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.startswith("regard."):
                imported = name.split(".")[1]
                assert imported in MAY[layer] | {layer, "errors"}, f"{file.name} imports {name}"


def test_every_layer_is_known() -> None:
    assert {file.relative_to(ROOT).parts[0].removesuffix(".py") for file in FILES} - {"cli"} == set(MAY)
