"""The command line: a dict of typed functions. What a flag means is in its function's docstring.

torch is imported inside the functions, not at the top of these files, so that `--help` answers at once.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from regard.cli.common import is_first_process
from regard.cli.looking import attention, embed, features
from regard.cli.scoring import score
from regard.cli.training import compare, demo, pretrain, segment
from regard.cli.using import evaluate, info, predict, report
from regard.errors import InputError, Interrupted, TrainingStopped

# The least that a number may be, wherever it is an option.
LEAST = (
    dict.fromkeys(("epochs", "batch_size", "size", "local_size", "seeds", "jobs", "devices", "nodes", "accumulate"), 1)
    | dict.fromkeys(("workers", "seed", "local_crops", "lr", "backbone_lr", "checkpoint_minutes", "knn_every"), 0)
    | dict.fromkeys(("fps", "limit"), 1)
    | dict.fromkeys(("guide_sharpness", "guide_diversity", "guide_consistency"), 0)
)

MOST = {"size": 2**15 - 1, "local_size": 2**15 - 1}  # pixels of a side: OpenCV resizes no further

COMMANDS: dict[str, Callable[..., str]] = {
    "demo": demo,
    "pretrain": pretrain,
    "attention": attention,
    "features": features,
    "embed": embed,
    "score": score,
    "segment": segment,
    "evaluate": evaluate,
    "predict": predict,
    "compare": compare,
    "report": report,
    "data": info,
}


POSITIONAL = ("report", "data")  # `regard report DIR`, `regard data SRC`


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
    for name, function in COMMANDS.items():
        first = (function.__doc__ or "").strip().splitlines()[0]
        command = _Parser(prog=f"regard {name}", description=first)
        command.add_argument("--config", action="config", help="A YAML file with any of these options.")
        command.add_function_arguments(function, as_positional=name in POSITIONAL)
        for action in command._actions:  # `--baselines` alone means true
            if getattr(action, "_typehint", None) is bool:
                action.nargs, action.const = "?", True
        commands.add_subcommand(name, command, help=first)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command: its last line says what was made; a wrong input is one line, and exit status 2."""
    arguments = _spread_images(list(sys.argv[1:] if argv is None else argv))
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return
    options = parser.parse_args(arguments)
    values = options[options.subcommand].as_dict()
    values.pop("config", None)
    try:
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"--{name} {value} is no number that can be used here")
            if name in LEAST and value is not None and value < LEAST[name]:
                raise InputError(f"--{name} {value} is too small: take {LEAST[name]} or more")
            if name in MOST and value is not None and value > MOST[name]:
                raise InputError(f"--{name} {value} is too large: take {MOST[name]} or less")
        made = COMMANDS[options.subcommand](**values)
        if is_first_process():
            print(made)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"regard {options.subcommand}: {error.strerror or error}{where}", file=sys.stderr)
        raise SystemExit(2) from None
    except InputError as error:
        # an error from a loading process comes with its traceback; the last line is the message
        line = str(error).strip().splitlines()[-1].removeprefix("regard.errors.InputError: ")
        print(f"regard {options.subcommand}: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except TrainingStopped as error:
        if is_first_process():
            print(f"regard {options.subcommand}: {error}", file=sys.stderr)
        raise SystemExit(128 + error.signum if isinstance(error, Interrupted) else 1) from None
    except KeyboardInterrupt:
        print(f"regard {options.subcommand}: interrupted; what was finished is kept", file=sys.stderr)
        raise SystemExit(130) from None


def _spread_images(arguments: list[str]) -> list[str]:
    """`--images A B C`, `--images=A`, once or often, as one JSON list, which is how jsonargparse takes lists."""
    images: list[str] = []
    rest: list[str] = []
    into = rest
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--images":
            into = images
            images.extend([value] if value else [])
        elif argument.startswith("--"):
            into = rest
            rest.append(argument)
        else:
            into.append(argument)
    if not images or images[0].startswith("["):  # JSON already
        return arguments
    return [*rest, f"--images={json.dumps(images)}"]
