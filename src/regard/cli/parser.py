"""From typed functions to a command line, and back.

A parameter of a command is an option, whose words are in the docstring; a parameter that is a `Settings` dataclass is
all of its fields, side by side, each with the words, choices and default that it has there.
"""

import argparse
import inspect
import json
import os
import re
import shlex
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings

from regard.errors import InputError, unknown
from regard.files import TOO_DEEP, read_yaml, recipe
from regard.say import shown
from regard.settings import MOST_SEED, Settings, check_number, default_of, in_words, kinds_of, options

Command = Callable[..., str]
Commands = Mapping[str, Command | Mapping[str, Command]]

ABOUT = {
    "data": "Say what a path holds, find what is wrong with it, download a published data set, convert or pack one."
}
POSITIONAL = ("report", "info", "check", "download", "convert", "pack")  # `regard report DIR`, `regard data info SRC`
THERE = {"data": "regard.data.source", "images": "regard.pictures.targets"}  # paths, by whose rule they are there
FOLDERS = {"out", "cache", "to"}  # that are made
MAKE_A_FILE = ("check", "export")  # of `out`
NOT_REPEATED = ("jobs", "devices", "workers", "dry_run", "cluster", "cluster_options")  # they change no result


class Parser(ArgumentParser):
    """A wrong option is one line too. rare: the options that only `--help=all` shows; known: names that one takes."""

    rare: set[str]
    known: Mapping[str, Sequence[str]] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit status 2, after one line in the words of people, not of jsonargparse's types."""
        line, kinds = " ".join(message.split()), {one.dest: getattr(one, "_typehint", None) for one in self._actions}
        if (wrong := re.search(r'key "(?:\w+\.)*(\w+)".*(?:Got|Given) value: (.*)', line)) and kinds.get(wrong[1]):
            line = f"--{wrong[1]} should be {in_words(kinds[wrong[1]])}, not {wrong[2]}"
        elif other := re.match(r"unrecognized arguments: --(\w+)", line):
            placed = [one.dest for one in self._actions if not one.option_strings]
            line = str(unknown("option", f"--{other[1]}", [f"--{name}" for name in kinds if name not in placed]))
            if other[1] in placed:
                line = f"{other[1]} is told by its place, without --{other[1]}: {self.prog} {' '.join(placed).upper()}"
        line = re.sub(r"(arguments are required: )(?:\w+\.)+(\w+)", r"\1--\2", line)
        print(shown(f"regard: {line} (see {self.prog} --help)"), file=sys.stderr)
        raise SystemExit(2)


class Help(argparse.Action):
    """`--help` shows the options that people use, `--help=all` every one. They are only hidden while it is shown."""

    def __call__(self, parser: Any, namespace, values, option_string=None) -> NoReturn:
        """Show the help and end."""
        hidden = [] if values == "all" else [one for one in parser._actions if one.dest in parser.rare]
        words = [one.help for one in hidden]
        for one in hidden:
            one.help = argparse.SUPPRESS
        try:
            parser.print_help()
            if hidden:
                print(f"\n{len(hidden)} more options: {parser.prog} --help=all")
        finally:
            for one, said in zip(hidden, words, strict=True):
                one.help = said
        raise SystemExit(0)


class Completion(argparse.Action):
    """Print a script for a shell, so that it completes commands, options, their choices, and files."""

    def __call__(self, parser: Any, namespace, values: Any, option_string=None) -> NoReturn:
        """Print the script and end; the parser is of no further use."""
        import shtab

        parsers = [parser]
        for one in parsers:  # grows
            for action in one._actions:
                kind = getattr(action, "_typehint", None)
                if known := one.known.get(action.dest) or (get_args(kind) if get_origin(kind) is Literal else ()):
                    action.choices = list(map(str, known))
                elif kind in (bool, bool | None):
                    action.choices = ["true", "false"]
                elif isinstance(action.choices, Mapping):
                    parsers += action.choices.values()
                elif action.choices is None and action.nargs != 0:
                    action.complete = shtab.FILE
        print(shtab.complete(parser, values))
        raise SystemExit(0)


def build_parser(commands: Commands) -> Parser:
    """A subcommand per function, with its options, `--config FILE.yaml` and `--print_config`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    parser = Parser(
        prog="regard", description="Learn from images without labels, read the attention, segment with it, and compare."
    )
    said = f"regard {version('regard')}"
    parser.add_argument("--version", action="version", version=said, help="Print the version.")
    words = "Print a script that completes commands and options: regard --completion bash >> ~/.bashrc"
    parser.add_argument(
        "--completion", action=Completion, choices=("bash", "zsh", "tcsh"), default=argparse.SUPPRESS, help=words
    )
    outer = parser.add_subcommands(metavar="COMMAND")
    groups = []
    for name, command in commands.items():
        if isinstance(command, Mapping):
            group = Parser(prog=f"regard {name}", description=ABOUT[name])
            _add(outer, name, group, ABOUT[name])
            groups.append((group, name, command))
        else:
            _add(outer, name, command_parser(name, command), _summary(command))
    for group, name, inner in groups:  # after the outer ones: jsonargparse wants them level by level
        below = group.add_subcommands(metavar="COMMAND")
        for word, command in inner.items():
            _add(below, word, command_parser(f"{name} {word}", command), _summary(command))
    return parser


def _add(subcommands: Any, name: str, parser: Parser, about: str) -> None:
    """As a subcommand, which keeps its name: jsonargparse would call it `regard [options] NAME`."""
    own = parser.prog
    subcommands.add_subcommand(name, parser, help=about)
    parser.prog = own


def command_parser(name: str, command: Command) -> Parser:
    """The options of one command."""
    parser = Parser(prog=f"regard {name}", description=_summary(command), add_help=False)
    parser.rare = set()
    parser.add_argument("-h", "--help", action=Help, nargs="?", const="", default=argparse.SUPPRESS, help="Show this.")
    parser.add_argument("--config", action="config", help="A YAML file with any of these options, or a recipe's name.")
    groups = _groups(command)
    parser.known = {one.name: one.metadata["choices"] for kind in groups.values() for one in options(kind)}
    parser.add_function_arguments(command, as_positional=name.split()[-1] in POSITIONAL, skip=set(groups))
    sections: dict[str, Any] = {}
    for kind in groups.values():
        for option in options(kind):
            declared = next(base for base in reversed(kind.__mro__) if option.name in inspect.get_annotations(base))
            title = (declared.__doc__ or "").strip().splitlines()[0].rstrip(".")
            section = sections.setdefault(title, parser.add_argument_group(title) if title not in sections else None)
            about, default = option.metadata, default_of(option)
            words = about["words"] + (f" One of {', '.join(about['choices'])}." if about["choices"] else "")
            given = {"required": True} if default is MISSING else {"default": default}
            section.add_argument(f"--{option.name}", type=kinds_of(kind)[option.name], help=words, **given)
            if not about["common"] or option.name in kind.crowded_out:
                parser.rare.add(option.name)
    for action in parser._actions:  # `--baselines` alone means true
        if getattr(action, "_typehint", None) in (bool, bool | None):
            action.nargs, action.const = "?", True
    return parser


def _groups(command: Command) -> dict[str, type[Settings]]:
    """The parameters of a command that are settings."""
    hints = get_type_hints(command)
    return {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Settings)}


def _summary(command: Command) -> str:
    """The first line of the docstring."""
    return (command.__doc__ or "").strip().splitlines()[0]


def parsed(parser: Parser, commands: Commands, words: list[str]) -> tuple[str, Command, dict[str, Any]]:
    """What is asked for: the words that name the command, its function, and all of its options."""
    for word in words:
        if not word.isascii() and os.fsencode(word).decode(errors="ignore") != word:
            parser.error(f"{word} is not UTF-8 text, as names in files of results are: rename it")
    try:
        found = parser.parse_args(_with_files(_as_parsed(words, commands)))
    except InputError as error:
        parser.error(str(error))
    except RecursionError:
        parser.error(f"an option has {TOO_DEEP}")
    name, command = "regard", commands
    while isinstance(command, Mapping):
        word = found.subcommand
        name, command, found = f"{name} {word}", command[word], found[word]
    return name, command, found.as_dict()


def _with_files(arguments: Sequence[str]) -> list[str]:
    """The arguments with a file in the place of each recipe's name. InputError for a file of options that is none."""
    made = []
    for before, argument in pairwise(["", *arguments]):
        option = "--config=" if argument.startswith("--config=") else ""
        if option or (before == "--config" and not argument.startswith("--")):
            file = recipe(argument.removeprefix(option))
            if file.is_file():  # of a pipe, nothing would be left
                read_yaml(file)  # which is careful with what is deep, or stands for very much
            argument = f"{option}{file}"
        made.append(argument)
    return made


def arguments_of(command: Command, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the function is called with. InputError for a value out of its bounds."""
    made, groups = {}, _groups(command)
    for name in inspect.signature(command).parameters:
        if name in groups:
            made[name] = groups[name](**{one.name: values[one.name] for one in options(groups[name])})
        else:
            made[name] = value = values[name]
            if isinstance(value, int | float) and not isinstance(value, bool):  # a seed, or a share of labels
                check_number(name, value, 0, MOST_SEED)
    return made


def check_there(command: Command, arguments: Mapping[str, Any]) -> None:
    """InputError for data or images that are not there, and for a file in the place of a folder that is to be made:
    said before torch is imported, which takes seconds.
    """
    for name in FOLDERS & arguments.keys():
        place = Path(arguments[name] or "")
        for path in (place, *place.parents)[command.__name__ in MAKE_A_FILE :]:
            if path.exists() and not path.is_dir():
                raise InputError(f"{path} is a file, and a folder is to be there: choose another --{name}")
    for name in THERE.keys() & arguments.keys():
        import_module(THERE[name]).check_there(arguments[name])


def command_line(command: Command, given: Mapping[str, Any]) -> str:
    """The command that does the same again. given: its arguments by name; what is as by default is not said."""
    words = ["regard", command.__name__]
    for name, parameter in inspect.signature(command).parameters.items():
        value = given[name]
        if isinstance(value, Settings):
            said = {one.name: (getattr(value, one.name), default_of(one)) for one in options(value)}
        else:
            said = {name: (value, parameter.default)}
        for option, (chosen, usual) in said.items():
            if chosen == usual or option in NOT_REPEATED:
                continue
            words.append(f"--{option}")
            if isinstance(chosen, tuple | list):
                words += map(str, chosen)
            elif chosen is not True:
                words.append(chosen if isinstance(chosen, str) else json.dumps(chosen))
    return shlex.join(words)


def _takes_several(commands: Commands) -> dict[str, bool]:
    """The options that are lists and nothing else, and whether of numbers: `--images A B C`, `--channels 3,2,1`."""
    found = {}
    for command in commands.values():
        if isinstance(command, Mapping):
            continue
        kinds = get_type_hints(command)
        for kind in _groups(command).values():
            kinds = kinds | kinds_of(kind)
        for name, kind in kinds.items():
            parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
            if all(get_origin(part) in (list, tuple) for part in parts if part is not types.NoneType):
                found[f"--{name}"] = not any(str in get_args(part) for part in parts)
    return found


def _as_parsed(arguments: Sequence[str], commands: Commands) -> list[str]:
    """The arguments as jsonargparse takes them.

    `--images A B C`, `--images=A`, once or often, as one JSON list; `--range -1,1`, which begins as options do, as
    `--range=-1,1`. And files of options first, wherever they stand, as
    the last of several values counts.
    """
    lists = _takes_several(commands)
    given: dict[str, list[str]] = {}
    files: list[str] = []
    rest: list[str] = []
    into = rest
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):  # `--dry-run` is as good as `--dry_run`
            name = "--" + name[2:].replace("-", "_")
            argument = name + equals + value
        if name in lists:
            into = given.setdefault(name, [])
            into.extend([value] if value else [])
        elif name == "--config":
            into = files
            into.append(argument)
        elif argument.startswith("--"):
            into = rest
            rest.append(argument)
        elif into is rest and rest and re.fullmatch(r"--\w+", rest[-1]) and re.match(r"-[\d.]+%?,", argument):
            rest[-1] += f"={argument}"
        else:
            into.append(argument)
    for name, values in given.items():
        is_json = len(values) == 1 and values[0].startswith("[")
        if lists[name] and not is_json:
            values = [part for value in values for part in value.split(",")]
        rest += [f"{name}={values[0] if is_json else json.dumps(values)}"]
    words = 2 if rest and isinstance(commands.get(rest[0]), Mapping) else 1
    return [*rest[:words], *files, *rest[words:]]
