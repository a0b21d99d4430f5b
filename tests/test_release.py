"""What a stranger gets: a package that says where it lives, papers that name its version, pages whose links lead on."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("home", ["", "https://host.example/owner/name"])
def test_links_of_the_description_work_where_the_package_lives(home: str, tmp_path, monkeypatch) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    monkeypatch.setenv("REGARD_HOME", home)
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    (name,) = (name for name in zipfile.ZipFile(built).namelist() if name.endswith("METADATA"))
    text = zipfile.ZipFile(built).read(name).decode()
    here = [link for link in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")) if ":" not in link]
    assert here
    assert all((ROOT / link).exists() for link in here)
    if home:
        assert all(f"{home}/{'raw' if link.endswith(('jpg', 'png')) else 'blob'}/v{version('regard')}/{link}" in text
                   for link in here)  # fmt: skip
        assert not [link for link in LINK.findall(text) if ":" not in link]
    assert (f"Project-URL: Homepage, {home}" in text) == bool(home)


def test_one_version_stands_everywhere() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version("regard")
    assert f"\n## {version('regard')} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda file: file.name)
def test_workflows_call_targets_that_there_are(file: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for job in yaml.safe_load(file.read_text())["jobs"].values():
        for line in (step["run"] for step in job["steps"] if "make " in step.get("run", "")):
            words = line.partition("make ")[2].split()
            assert {word for word in words if "=" not in word} <= targets, line


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link(tmp_path) -> None:
    pytest.importorskip("mkdocs")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path], cwd=ROOT, check=True
    )
    commands = (tmp_path / "commands" / "index.html").read_text(encoding="utf-8")
    assert all(words in commands for words in ("regard data pack", "--fusion_lr"))
    assert "regard.attention.metrics.entropy" in (tmp_path / "python" / "index.html").read_text(encoding="utf-8")
