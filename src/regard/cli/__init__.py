"""The command line: a dict of typed functions, which parse nothing themselves and import torch only when they run."""

import sys
from collections.abc import Sequence

from regard.cli.data import check, convert, download, info, pack
from regard.cli.look import attention, embed, features
from regard.cli.parser import Commands, arguments_of, build_parser, check_there, parsed
from regard.cli.probe import probe
from regard.cli.score import score
from regard.cli.study import ablate, compare, demo, report, sweep
from regard.cli.train import pretrain, segment
from regard.cli.use import evaluate, export, predict
from regard.errors import InputError, Interrupted, TrainingStopped
from regard.say import is_first_process, shown
from regard.settings import Reading

# A command, or a word with commands behind it: `regard data info`.
COMMANDS: Commands = {
    "demo": demo,
    "pretrain": pretrain,
    "attention": attention,
    "features": features,
    "embed": embed,
    "score": score,
    "probe": probe,
    "segment": segment,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "compare": compare,
    "ablate": ablate,
    "sweep": sweep,
    "report": report,
    "data": {"info": info, "check": check, "download": download, "convert": convert, "pack": pack},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command: its last line says what was made; a wrong input is one line, and exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(COMMANDS)
    if not words:
        parser.print_help()
        return
    name, command, values = parsed(parser, COMMANDS, words)
    try:
        arguments = arguments_of(command, values)
        check_there(command, arguments)
        for given in arguments.values():
            if isinstance(given, Reading):
                given.hold()
        made = command(**arguments)
        if is_first_process():
            print(shown(made))
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(shown(f"{name}: {error.strerror or error}{where}"), file=sys.stderr)
        raise SystemExit(2) from None
    except InputError as error:
        # an error from a loading process comes with its traceback, and what is behind that is the message
        line = str(error).strip().rpartition("\nregard.errors.InputError: ")[2]
        print(shown(f"{name}: {line}"), file=sys.stderr)
        raise SystemExit(2) from None
    except TrainingStopped as error:
        if is_first_process():
            print(shown(f"{name}: {error}"), file=sys.stderr)
        raise SystemExit(128 + error.signum if isinstance(error, Interrupted) else 1) from None
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was finished is kept", file=sys.stderr)
        raise SystemExit(130) from None
