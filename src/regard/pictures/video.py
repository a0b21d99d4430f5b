"""Frames of a video file, decoded one at a time by OpenCV, as (H, W, 3) uint8 RGB in 0..255, upright."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

# OpenCV's ffmpeg says on its own what it dislikes about a file; -8 is silence. Read when the first video is opened.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
# Its own files alone: ffmpeg would take a list of other files and addresses for a video, whatever its name.
os.environ.setdefault(
    "OPENCV_FFMPEG_CAPTURE_OPTIONS",
    "format_whitelist;mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,gif",
)
import cv2

from regard.data.reading import check_size
from regard.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".gif")


def is_video(name: str | Path) -> bool:
    """Whether a file of this name counts as a video."""
    return str(name).lower().endswith(VIDEO_SUFFIXES)


def frame_count(path: str | Path) -> int:
    """How many frames the file says it has: an estimate, in some formats. InputError for what is no readable video."""
    with _opened(path) as capture:
        return max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))


def read_video(path: str | Path) -> Iterator[Callable[[], UInt8[np.ndarray, "h w 3"]]]:
    """For each frame in order, what gives its pixels, to be called before the next: frames not called for cost little.

    Raises InputError for what is no video, and when a frame that is called for can't be decoded.
    """
    with _opened(path) as capture:

        def pixels() -> UInt8[np.ndarray, "h w 3"]:
            found, bgr = capture.retrieve()
            if not found:
                raise InputError(f"a frame of {path} can't be decoded: save the video anew, as H.264 in MP4 for one")
            return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)

        while capture.grab():
            yield pixels


@contextmanager
def _opened(path: str | Path) -> Iterator[cv2.VideoCapture]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened() or capture.get(cv2.CAP_PROP_FRAME_WIDTH) == 0:
            raise InputError(f"{path} can't be read as a video: save it as H.264 in MP4, or its frames as images")
        width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        check_size(int(width), int(height), path)
        yield capture
    finally:
        capture.release()
