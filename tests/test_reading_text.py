"""Text, JSON and YAML of people: what is too deep or too much is one line; and what is shown of names is text."""

import pytest

from commands import refused
from regard.errors import InputError
from regard.files import read_json, read_yaml
from regard.results import StudyResults, read_stored
from regard.say import console, say, shown

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcde", "bcdef", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "too deep"),
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]", "more than 100,000 values"),
        ("seeds: " + "9" * 6000, "a number of 6,000 digits"),
        ("a: 2026-13-45", "is not YAML"),
    ],
)
def test_yaml_that_is_too_much_is_one_line(tmp_path, text, said):
    (tmp_path / "x.yaml").write_text(text)
    refused(lambda: read_yaml(tmp_path / "x.yaml"), "x.yaml", said)


def test_yaml_with_anchors_is_read(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a {lr: 1e-3}\nb:\n  <<: *a\n  epochs: 2\n")
    assert read_yaml(tmp_path / "x.yaml")["b"] == {"lr": 1e-3, "epochs": 2}


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 6000, "{"])
def test_json_that_is_too_much_is_one_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    refused(lambda: read_json(tmp_path / "x.json"), "x.json")
    refused(lambda: read_stored(tmp_path / "x.json", StudyResults), "x.json")


@pytest.mark.parametrize("text", ["3", "[1, [2]]", '{"a": 1}', "[NaN]", "\udcff"])
def test_json_of_another_kind_is_one_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=r"x\.json") as error:
        read_json(tmp_path / "x.json", list[int])
    assert error.value.__cause__ is not error.value  # or whoever looks for the first cause never ends


def test_names_are_text_and_no_terminal_obeys_them(capsys):
    from rich.table import Table

    name = "a [bold]b[/] [/x] :smile:\x1b[31m\x9b\u202e\udcff"
    say(f"{name}\nsecond", "label")
    table = Table("name", title=name)
    table.add_row(shown(f"{name}\nx"))
    table.add_row(name)
    console().print(table)
    said = capsys.readouterr().err
    assert said.count("a [bold]b[/] [/x] :smile:\\x1b[31m\\x9b\\u202e\\udcff") == 4
    assert "\\nsecond" in said
    assert not {"\x1b", "\x9b", "\u202e"} & set(said)
