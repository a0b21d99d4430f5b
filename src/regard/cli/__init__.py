"""The command line: a dict of typed functions. What a flag means is in its function's docstring.

torch is imported inside the functions, not at the top of these files, so that `--help` answers at once.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from regard.cli.data import check, download, info, pack
from regard.cli.exporting import export
from regard.cli.looking import attention, embed, features
from regard.cli.scoring import score
from regard.cli.sweeping import sweep
from regard.cli.training import ablate, compare, demo, pretrain, segment
from regard.cli.using import evaluate, predict, report
from regard.errors import InputError, Interrupted, TrainingStopped
from regard.say import is_first_process

# The least that a number may be, wherever it is an option.
LEAST = (
    dict.fromkeys(
        ("epochs", "batch_size", "size", "local_size", "seeds", "jobs", "trials", "devices", "nodes", "accumulate"), 1
    )
    | dict.fromkeys(
        ("workers", "seed", "local_crops", "lr", "backbone_lr", "checkpoint_minutes", "knn_every", "weight_decay"), 0
    )
    | dict.fromkeys(("fps", "limit", "crop", "window", "patience", "cache_crops", "heads_kept", "height", "width"), 1)
    | dict.fromkeys(("guide_sharpness", "guide_diversity", "guide_consistency"), 0)
)

MOST = dict.fromkeys(("size", "local_size", "crop"), 2**15 - 1)  # pixels of a side: OpenCV resizes no further

Command = Callable[..., str]

# A command, or a word with commands behind it: `regard data info`.
COMMANDS: dict[str, Command | dict[str, Command]] = {
    "demo": demo,
    "pretrain": pretrain,
    "attention": attention,
    "features": features,
    "embed": embed,
    "score": score,
    "segment": segment,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "compare": compare,
    "ablate": ablate,
    "sweep": sweep,
    "report": report,
    "data": {"info": info, "check": check, "download": download, "pack": pack},
}

ABOUT = {"data": "Say what a path holds, find what is wrong with it, download a published data set, pack one."}
LISTS = ("--images", "--scales", "--axis", "--label_fractions", "--layers")  # options that take several values
POSITIONAL = ("report", "info", "check", "download", "pack")  # `regard report DIR`, `regard data info SRC`


class _Parser(ArgumentParser):
    """A wrong option is one line too."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(message.split())
        print(f"regard: {line} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> ArgumentParser:
    """A subcommand per function, with its arguments, `--config FILE.yaml` and `--print_config`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    parser = _Parser(
        prog="regard", description="Learn from images without labels, read the attention, segment with it, and compare."
    )
    commands = parser.add_subcommands(metavar="COMMAND")
    groups = []
    for name, command in COMMANDS.items():
        if isinstance(command, dict):
            group = _Parser(prog=f"regard {name}", description=ABOUT[name])
            commands.add_subcommand(name, group, help=ABOUT[name])
            groups.append((group, name, command))
        else:
            commands.add_subcommand(name, _command_parser(name, command), help=_summary(command))
    for group, name, inner in groups:  # after the outer ones: jsonargparse wants them level by level
        commands = group.add_subcommands(metavar="COMMAND")
        for word, command in inner.items():
            commands.add_subcommand(word, _command_parser(f"{name} {word}", command), help=_summary(command))
    return parser


def _command_parser(name: str, function: Command) -> _Parser:
    parser = _Parser(prog=f"regard {name}", description=_summary(function))
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    parser.add_function_arguments(function, as_positional=name.split()[-1] in POSITIONAL)
    for action in parser._actions:  # `--baselines` alone means true
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True
    return parser


def _summary(function: Command) -> str:
    """The first line of the docstring."""
    return (function.__doc__ or "").strip().splitlines()[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command: its last line says what was made; a wrong input is one line, and exit status 2."""
    arguments = _as_parsed(list(sys.argv[1:] if argv is None else argv))
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return
    options = parser.parse_args(arguments)
    name, command = "regard", COMMANDS
    while isinstance(command, dict):
        word = options.subcommand
        name, command, options = f"{name} {word}", command[word], options[word]
    values = options.as_dict()
    values.pop("config", None)
    try:
        for option, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"--{option} {value} is no number that can be used here")
            if option in LEAST and value is not None and value < LEAST[option]:
                raise InputError(f"--{option} {value} is too small: take {LEAST[option]} or more")
            if option in MOST and value is not None and value > MOST[option]:
                raise InputError(f"--{option} {value} is too large: take {MOST[option]} or less")
        made = command(**values)
        if is_first_process():
            print(made)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"{name}: {error.strerror or error}{where}", file=sys.stderr)
        raise SystemExit(2) from None
    except InputError as error:
        # an error from a loading process comes with its traceback; the last line is the message
        line = str(error).strip().splitlines()[-1].removeprefix("regard.errors.InputError: ")
        print(f"{name}: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except TrainingStopped as error:
        if is_first_process():
            print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(128 + error.signum if isinstance(error, Interrupted) else 1) from None
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was finished is kept", file=sys.stderr)
        raise SystemExit(130) from None


def _as_parsed(arguments: list[str]) -> list[str]:
    """The arguments as jsonargparse takes them.

    `--images A B C`, `--images=A`, once or often, as one JSON list. And files of options first, wherever they stand, as
    the last of several values counts.
    """
    given: dict[str, list[str]] = {}
    files: list[str] = []
    rest: list[str] = []
    into = rest
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):  # `--dry-run` is as good as `--dry_run`
            name = "--" + name[2:].replace("-", "_")
            argument = name + equals + value
        if name in LISTS:
            into = given.setdefault(name, [])
            into.extend([value] if value else [])
        elif name == "--config":
            into = files
            into.append(argument)
        elif argument.startswith("--"):
            into = rest
            rest.append(argument)
        else:
            into.append(argument)
    for name, values in given.items():
        is_json = len(values) == 1 and values[0].startswith("[")
        rest += [f"{name}={values[0] if is_json else json.dumps(values)}"]
    words = 2 if rest and isinstance(COMMANDS.get(rest[0]), dict) else 1
    return [*rest[:words], *files, *rest[words:]]
