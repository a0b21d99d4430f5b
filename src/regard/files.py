"""Files that are whole or not there, and YAML."""

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
import yaml

from regard.errors import InputError, first_line, unknown

T = TypeVar("T")
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room, a quota, a bound on the size of files
MOST_NAME = 255  # bytes of a file name, on nearly every disk
RECIPES = Path(__file__).parent / "configs"  # that come with the package
HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # best first: data only, and read as data only
WEIGHTS = Path(__file__).parent / "weights"  # so too
HUB = "hf-hub:"  # in front of a name on the Hugging Face hub, as timm spells it
CONFIG_FILE = "config.json"  # of a model there
TOO_DEEP = "brackets within brackets, too deep to be read"
MOST_VALUES, MOST_DIGITS = 100_000, 30  # of YAML that people write


def write_whole(path: Path, write: Callable[[BinaryIO], T]) -> T:
    """A file, whole or not at all, of the mode that the umask leaves. `write` gets it open; what it gives is given on.

    OSError, which names the file, where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        with on_disk(path):
            with partial.open("wb") as file:
                made = write(file)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return made


def partial_of(path: Path) -> Path:
    """Where what becomes `path` is written, short as that may have the longest of names; each process has its own."""
    return path.with_name(f"{_digest(path.name)}.{os.getpid()}.partial")


def file_name(stem: str, ending: str) -> str:
    """stem + ending; cut, and told apart by a digest, where no file can have so long a name."""
    room = MOST_NAME - len(os.fsencode(ending))
    if len(os.fsencode(stem)) <= room:
        return stem + ending
    return f"{os.fsencode(stem)[: room - 17].decode(errors='ignore')}-{_digest(stem)}{ending}"


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Within: what a disk refuses is an OSError that names `path`, also where a library makes another error of it."""
    try:
        yield
    except Exception as error:
        link: BaseException | None = error
        while link is not None:
            if isinstance(link, OSError) and link.errno in REFUSALS:
                why = f"{link.strerror} (once there is room, the same command would work)"
                raise OSError(link.errno, why, str(path)) from error
            link = link.__cause__ or link.__context__
        raise


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    write_whole(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


def read_text(path: Path) -> str:
    """The text of a file that people may have written; InputError for what is not UTF-8."""
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8") from error
    if "\0" in text:  # UTF-16 without its mark
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8")
    return text


def read_json(path: Path, kind: Any = Any) -> Any:
    """Read a JSON file; InputError when it is not whole, or no `kind`, such as `list[int]`."""
    text = read_text(path)
    try:
        return msgspec.convert(json.loads(text), kind, str_keys=True)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise InputError(f"cannot read {path}: {_why(error)}") from error


def recipe(name: str | Path) -> Path:
    """The file of this name, or, where there is none, the recipe that comes with the package: `few_labels`.

    InputError, with the nearest of their names, where there is neither.
    """
    known = {file.stem: file for file in sorted(RECIPES.glob("*.yaml"))}
    if os.path.exists(name) and not os.path.isdir(name):
        return Path(name)
    stem = Path(name).stem
    if str(name) in (stem, f"{stem}.yaml") and stem in known:
        return known[stem]
    if str(name) == stem:
        raise unknown("recipe", stem, known)
    hint = f"the recipe is found by its name alone, {stem}" if stem in known else unknown("recipe", stem, known)
    raise InputError(f"{name}: there is no such file; {hint}")


def packaged() -> dict[str, Path]:
    """The files of the backbones that come with the package, by name: `scenes/vit`."""
    return {f"{file.parent.name}/{file.stem}": file for file in sorted(WEIGHTS.glob("*/*.safetensors"))}


def weights_file(name: str | Path) -> Path:
    """Where weights are: a path; where nothing is there, those of the package by name, or a folder fetched from the hub
    for hf-hub:OWNER/NAME.
    """
    if str(name).startswith(HUB) and not Path(name).exists():
        return fetched(str(name), HUB_WEIGHTS)
    return Path(name) if Path(name).exists() else packaged().get(str(name), Path(name))


def on_hub(name: str) -> tuple[str, str | None]:
    """OWNER/NAME of a name on the Hugging Face hub, and what follows an @: a branch, tag or commit.

    InputError for what is no such name.
    """
    repository, _, revision = name.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository, re.ASCII) or "--" in repository or ".." in repository:
        raise InputError(f"{name} is neither a folder nor a name on the Hugging Face hub, which is OWNER/NAME")
    return repository, revision or None


def fetched(name: str, weights: Sequence[str], revision: str | None = None) -> Path:
    """The folder of a model on the Hugging Face hub, with its config.json and the first there is of these weights.

    They are fetched once, and kept where the hub's own library keeps them. For a private one, the token is that of
    HF_TOKEN, or of `hf auth login`. InputError where it cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    repository, said = on_hub(name)
    lost: Exception | None = None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # which tells of each of its five tries
    try:
        folder = Path(hf_hub_download(repository, CONFIG_FILE, revision=revision or said)).parent
        for file in weights:
            try:
                return Path(hf_hub_download(repository, file, revision=folder.name)).parent  # of the same commit
            except LocalEntryNotFoundError as error:  # without a network: the next may have been fetched
                lost = error
            except EntryNotFoundError:
                continue
        if lost is not None:
            raise lost
    except LocalEntryNotFoundError as error:
        what = f"{repository} was not fetched before, and there is no way to the Hugging Face hub"
        raise InputError(f"{what}: a folder of that name here, or a network, would work") from error
    except RepositoryNotFoundError as error:  # also of one that asks to be agreed to
        token = "HF_TOKEN of one who may read it" if os.environ.get("HF_TOKEN") else "HF_TOKEN in the environment"
        raise InputError(
            f"{repository} is not on the Hugging Face hub, or is not for everyone: another name, or {token}, would work"
        ) from error
    except Exception as error:  # the hub, the network and the file system each raise their own
        raise InputError(f"cannot fetch {repository} from the Hugging Face hub: {first_line(error)}") from error
    raise InputError(f"{repository} on the Hugging Face hub has no {' or '.join(weights)}, which is what is read")


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, in which 1e-3 is a number, as in YAML 1.2; InputError for what has none."""
    text = read_text(path)
    try:
        found = parse_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: is not YAML ({_why(error)})") from error
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path}: should hold keys with values, such as `lr: 1e-3`")
    return found


def _why(error: Exception) -> str:
    return TOO_DEEP if isinstance(error, RecursionError) else " ".join(str(error).split())


def parse_yaml(text: str) -> Any:
    """What YAML says. YAMLError where it is none, or says too much: anchors that repeat each other without end."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _count(node, {})
        return None if node is None else loader.construct_document(node)
    except ValueError as error:
        raise yaml.YAMLError(first_line(error)) from error
    finally:
        loader.dispose()


def _count(node: Any, known: dict[int, int]) -> int:
    """How many values a node stands for, with each use of a name for it; YAMLError for more than `MOST_VALUES`."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # while it is counted: a part of itself has no end
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for one in inner for part in (one if isinstance(one, tuple) else (one,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > MOST_DIGITS:
            raise yaml.YAMLError(f"a number of {len(node.value):,} digits: {MOST_DIGITS} at most would work")
    if known[id(node)] > MOST_VALUES:
        raise yaml.YAMLError(f"its anchors stand for more than {MOST_VALUES:,} values: fewer would work")
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
