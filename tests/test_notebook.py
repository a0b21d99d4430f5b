"""The notebook of ten labelled photos runs from its first cell to its last, with a small backbone and drawn photos."""

import os
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "ten_labelled_photos.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs(tmp_path, monkeypatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(NOTEBOOK, as_version=4)
    options = 'OPTIONS = ""'
    assert options in book.cells[1].source
    small = 'OPTIONS = "--backbone scenes/vit --pretrained false --size 64"'
    book.cells[1].source = book.cells[1].source.replace(options, small)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(one.get("text", "") for cell in book.cells for one in cell.get("outputs", ()))
    assert "regard segment:" not in printed  # a wrong input would be one line
    assert "cross-validated" in printed
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name == "photos"]
    assert "background" in str(book.cells[-2].outputs)


def test_the_notebook_is_kept_without_outputs() -> None:
    assert '"outputs": []' in NOTEBOOK.read_text(encoding="utf-8")
    assert "image/png" not in NOTEBOOK.read_text(encoding="utf-8")
