"""Which files a command makes pictures of, and where those pictures go."""

import glob
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from regard.errors import InputError
from regard.files import file_name
from regard.say import say


def outputs(
    paths: Sequence[str], out: str, also: Sequence[str] = (), videos: bool = True, ending: str = ".png"
) -> dict[Path, Path]:
    """The PNG in `out` for every image in these files and folders, under its own name, in natural order.

    A path may be a pattern such as "photos/**/*.jpg": it stands for the images and videos that match. Those of a
    pattern, as those of a folder, keep the folders that they lie in below it.
    also:   endings of further files that are made, such as "-overlay.png"; their names are `beside(png, ending)`.
    videos: False where videos are of no use: patterns then stand for images alone.
    ending: of what is made, if it is no PNG.

    Raises InputError for a path that is not there, and where a file would take the place of an image or of another one.
    """
    from regard.data.listing import list_images

    check_there(paths)
    made: dict[Path, Path] = {}
    place = Path(out).resolve()
    for path in map(Path, paths):
        if path.is_dir():
            found = _outside(place, path, {path / name: name for name in list_images(path)})
        elif path.is_file():
            found = {path: path.name}
        else:
            plain = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
            found = _outside(place, plain, _matches(path, plain, videos))
            if not found:
                raise InputError(f"no images in {path}")
        made |= {file: (Path(out) / name).with_suffix(ending) for file, name in found.items()}
    if not made:
        raise InputError(f"no images in {', '.join(paths)}")
    made = dict(sorted(made.items(), key=lambda item: natural(item[0])))
    sources = {file.resolve() for file in made}
    targets: dict[Path, Path] = {}
    for file, png in made.items():
        for target in (png, *(beside(png, ending) for ending in also)):
            if target.resolve() in sources:
                raise InputError(f"{target} is one of the images, and would be written over: choose another --out")
            if target in targets:
                raise InputError(
                    f"{file} and {targets[target]} would both become {target}: do them one after the other"
                )
            targets[target] = file
    return made


def check_apart(made: dict[Path, Path]) -> None:
    """InputError where a picture beside what is made of an image would lie among the images, and count as one."""
    folders = {folder.resolve() for folder in {image.parent for image in made}}
    for folder in dict.fromkeys(target.parent for target in made.values()):
        if folder.resolve() in folders:
            raise InputError(
                f"overlays in {folder}, among the images, would count as images later: choose another --out"
            )


def check_there(paths: Sequence[str]) -> None:
    """InputError for a path that is not there, and no pattern."""
    for path in map(Path, paths):
        if not (path.is_dir() or path.is_file() or glob.has_magic(str(path))):
            raise InputError(f"no file or folder at {path}")


def _outside(place: Path, root: Path, found: dict[Path, str]) -> dict[Path, str]:
    """Those that do not lie in the folder of the pictures, where that lies below `root`: an earlier call made them."""
    if root.resolve() not in place.parents:
        return found
    kept = {file: name for file, name in found.items() if place not in file.resolve().parents}
    if len(kept) < len(found):
        say(f"{len(found) - len(kept)} images in {place} are left out: the pictures go there")
    return kept


def _matches(pattern: Path, plain: Path, videos: bool) -> dict[Path, str]:
    """The images, and videos if wanted, that match, and their paths below the part of the pattern that is plain."""
    from regard.data.listing import is_image
    from regard.pictures.video import is_video

    found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
    return {
        file: file.relative_to(plain).as_posix()
        for file in found
        if (is_image(file.name) or (videos and is_video(file.name))) and file.is_file()
    }


def beside(png: Path, ending: str) -> Path:
    """NAME + ending for NAME.png, cut where that is too long."""
    return png.with_name(file_name(png.stem, ending))


def natural(path: Path) -> list[tuple[int, str]]:
    """A key to sort by: text by its letters, numbers by their value, so that frame2 comes before frame10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
