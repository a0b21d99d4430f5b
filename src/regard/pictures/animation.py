"""Pictures in order as one file that moves: GIF with Pillow, MP4 with ffmpeg. One picture is in memory at a time."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import GifImagePlugin, Image

from regard.errors import InputError
from regard.files import write_whole
from regard.pictures.draw import Picture


def check_animation(kind: str) -> None:
    """InputError when an animation of this kind, `gif` or `mp4`, cannot be written here."""
    if kind == "mp4" and shutil.which("ffmpeg") is None:
        raise InputError("an mp4 is written by ffmpeg, which is not on the PATH: install it, or take gif")


def write_animation(path: Path, pictures: Iterable[Picture], fps: int) -> int:
    """Write an animation, of the kind that the file's ending says, whole or not at all; gives how many pictures it has.

    A GIF repeats for ever; its times are in hundredths of a second, so that above 50 a second it stays at 50.
    Raises InputError for pictures of different sizes, for none, and where `ffmpeg` is needed and is missing or fails.
    """
    check_animation(path.suffix[1:])
    write = _write_gif if path.suffix == ".gif" else _write_mp4
    return write_whole(path, lambda file: write(file, _of_one_size(pictures), fps))


def _of_one_size(pictures: Iterable[Picture]) -> Iterator[Picture]:
    first = None
    for picture in pictures:
        first = first or picture.shape
        if picture.shape != first:
            was, is_ = (f"{width} x {height}" for height, width, _ in (first, picture.shape))
            raise InputError(f"a frame of the animation would be {is_} and the first is {was}: take frames of one size")
        yield picture
    if first is None:
        raise InputError("there are no frames to animate")


def _write_gif(file: BinaryIO, pictures: Iterator[Picture], fps: int) -> int:
    """Frame by frame, where Pillow's own `save_all` would keep all of them, and join those that are alike."""
    count = 0
    for count, picture in enumerate(pictures, start=1):
        # max-coverage keeps rare colours, such as those of a colour bar; dither would move from frame to frame
        frame = Image.fromarray(picture).quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        if count == 1:
            file.writelines(GifImagePlugin.getheader(frame.copy(), info={"loop": 0, "optimize": False})[0])
        duration = max(20, 1000 / fps)  # ms; browsers slow down what is faster than 50 a second
        file.writelines(GifImagePlugin.getdata(frame, duration=duration, include_color_table=True))
    file.write(b";")
    return count


def _write_mp4(file: BinaryIO, pictures: Iterator[Picture], fps: int) -> int:
    """Raw RGB through a pipe; sides are made even with white, as the usual 4:2:0 colours of a video need.

    ffmpeg opens the file by its name, since an MP4 cannot be written front to back.
    """
    first = next(pictures)
    height, width, _ = first.shape
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(fps), "-i", "-", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-pix_fmt", "yuv420p"]
    count = 0
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen([*command, "-f", "mp4", file.name], stdin=subprocess.PIPE, stderr=errors) as process:
            assert process.stdin is not None
            try:
                for picture in chain([first], pictures):
                    count += 1
                    process.stdin.write(np.ascontiguousarray(picture).tobytes())
                process.stdin.close()
            except BrokenPipeError:
                pass  # ffmpeg has ended, and says why
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise InputError(f"ffmpeg could not write the mp4 ({said[-1] if said else 'no reason given'}): take gif")
    return count
