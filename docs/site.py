"""Makes the pages of the documentation site that stand elsewhere: the front page and the results from their README.md,
commands and options from what parses them, recipes from their files. Used by mkdocs.yml.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from regard.cli import COMMANDS
from regard.cli.parser import command_parser
from regard.files import read_json

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "ten_labelled_photos.ipynb"
# What a link in the repository points to, and the page that it is on the site.
PLACES = {
    r"(?:\.\./)?results/README\.md": "results.md",
    r"(?:\.\./)?src/regard/configs/(\w+)\.yaml": r"recipes.md#\1",
    r"(?:\.\./)?docs/(\w+\.(?:md|jpg|png))": r"\1",
    r"(?:\.\./)?docs/(\w+)\.ipynb": r"\1.md",
}
PYTHON = """# Python

Names that `import regard` has itself, and the modules that scripts use most. Shapes are in the annotations.

::: regard.backbones.build_backbone
::: regard.backbones.base.Backbone
::: regard.backbones.base.Features
::: regard.backbones.base.AttentionMap
::: regard.attention.reading.HeadReader
::: regard.attention.metrics
::: regard.attention.guidance
::: regard.runs.pretraining.pretrain_run
::: regard.runs.segmenting.segment_run
::: regard.runs.run.load_run
::: regard.runs.run.Run
::: regard.runs.hub
::: regard.runs.export
::: regard.segmentation.fusions
::: regard.evaluation.scores
::: regard.evaluation.statistics
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    pages = {
        "index.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "results.md": (ROOT / "results" / "README.md").read_text(encoding="utf-8"),
        "commands.md": commands(),
        "recipes.md": recipes(),
        "python.md": PYTHON,
        f"{NOTEBOOK.stem}.md": notebook(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    results = ROOT / "results"
    for file in (*results.rglob("*.png"), *results.rglob("report.html")):
        files.append(File.generated(config, file.relative_to(results).as_posix(), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links as they are on the site; to a folder or file that it does not have, their words alone."""
    for pattern, page in PLACES.items():
        markdown = re.sub(rf"\]\({pattern}(?P<at>#[\w-]+)?\)", rf"]({page}\g<at>)", markdown)
    return re.sub(r"\[([^]]+)\]\((?!https?:)[^)#]*(?:/|\.py|\.json|LICENSE|[A-Z]+\.md)\)", r"\1", markdown)


def notebook() -> str:
    """The notebook, its code as blocks."""
    cells = read_json(NOTEBOOK)["cells"]
    texts = ("".join(cell["source"]) for cell in cells)
    return "\n\n".join(
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, texts, strict=True)
    )


def commands() -> str:
    """Every command with every option."""
    lines = ["# Commands", "", "Options are given as `--option value`, or in a YAML file as `--config FILE.yaml`."]
    for name, command in COMMANDS.items():
        inner = {name: command} if callable(command) else {f"{name} {word}": one for word, one in command.items()}
        for words, one in inner.items():
            lines += ["", f"## regard {words}", "", *_options(words, one)]
    return "\n".join(lines) + "\n"


def _options(name: str, command: Any) -> list[str]:
    parser = command_parser(name, command)
    assert parser.description
    lines = [parser.description]
    for group in parser._action_groups:
        rows = [one for one in group._group_actions if one.dest not in ("help", "config", "print_config")]
        if rows:
            title = (group.title or "").rstrip(".")
            title = "Its own" if parser.description.startswith(title) else title[0].upper() + title[1:]
            lines += ["", f"**{title}**", "", "| option | default | |", "|---|---|---|"]
        for one in rows:
            default = "" if one.default is None or one.required else f"`{one.default}`"
            told = f"`--{one.dest}`" if one.option_strings else f"`{one.dest.upper()}`"
            lines.append(f"| {told} | {default} | {(one.help or '').replace('|', chr(92) + '|')} |")
    return lines


def recipes() -> str:
    """The files of options that come with the package."""
    lines = ["# Recipes", "", "Found by name: `--config few_labels`. An option on the command line goes before."]
    for file in sorted((ROOT / "src" / "regard" / "configs").glob("*.yaml")):
        lines += ["", f"## {file.stem}", "", "```yaml", file.read_text(encoding="utf-8").rstrip(), "```"]
    return "\n".join(lines) + "\n"
