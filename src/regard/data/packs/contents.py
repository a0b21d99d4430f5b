"""What a pack says of itself, as it is written and read.

| file of a pack | what it holds |
|---|---|
| regard.json | `Contents`: classes, and of each split the chunks with their images, bytes and SHA-256; written last |
| packing.json | the same of a pack that is not finished, as far as it is |
| SPLIT/chunk-0-N.bin | LitData's layout: uint32 images; uint32 offsets, one more than images; the images' records |
| SPLIT/index.json | LitData's own list of the chunks, for its `StreamingDataset(PACK/SPLIT)` |

A record is a uint32 size for each of its fields, then these: `name` (UTF-8), `image` (a JPEG, PNG, ... file), and
`mask` (a PNG of class indices) or `label` (int64) where the data has them. All numbers are little-endian.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from regard.data.names import Byte
from regard.data.packs.store import Store
from regard.errors import InputError
from regard.results import NO_JSON
from regard.settings import Values

VERSION = 3
PACK_FILE, UNFINISHED_FILE = "regard.json", "packing.json"
FIELDS = {"images": ("name", "image"), "masks": ("name", "image", "mask"), "labels": ("name", "image", "label")}


class Chunk(Struct, frozen=True, forbid_unknown_fields=True):
    """A chunk file of a split. through: how many images of the order of packing are in it, before it, or left out."""

    file: Annotated[str, Meta(pattern=r"\Achunk-[0-9]+-[0-9]+\.bin\Z")]  # it and sha256 become parts of paths
    images: Annotated[int, Meta(ge=1)]
    bytes: Annotated[int, Meta(ge=2, lt=2**32)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    through: Annotated[int, Meta(ge=1)]

    def __post_init__(self) -> None:
        if self.images * 12 > self.bytes:  # an offset and two sizes each
            raise ValueError("there are more images than its bytes can hold")


class Contents(Struct, frozen=True, forbid_unknown_fields=True):
    """A pack. content: the fingerprint of what it is packed from."""

    kind: Literal["images", "masks", "labels"]
    classes: tuple[str, ...]
    palette: tuple[tuple[Byte, Byte, Byte], ...]
    ignore_index: Byte
    chunk_mb: int
    content: str
    splits: dict[Annotated[str, Meta(pattern=r"\A\w+\Z")], tuple[Chunk, ...]]
    version: Literal[3] = VERSION
    channels: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET  # of `settings.Values`, where they are said
    range: str | msgspec.UnsetType = msgspec.UNSET
    image_bits: Annotated[int, Meta(ge=8, le=16)] | msgspec.UnsetType = msgspec.UNSET  # what was range 0,4095 for 12

    @property
    def values(self) -> Values:
        """Which are read of its images."""
        return Values(channels=self.channels or None, range=self.range or None, image_bits=self.image_bits or None)

    def __post_init__(self) -> None:
        assert self.values  # which raises ValueError where there are none such
        if len(self.palette) != len(self.classes):
            raise ValueError("the palette has another length than the classes")


def unfinished(store: Store) -> Contents | None:
    """What there is of a pack that was begun; None where none was: others may have a packing.json of their own."""
    return _decoded(store.read(UNFINISHED_FILE) or b"")


def finished(store: Store) -> Contents | None:
    """What a pack holds; None where there is no finished one. InputError for one that can't be read."""
    if (data := store.read(PACK_FILE)) is None:
        return None
    contents = _decoded(data)
    if contents is None or not contents.splits or not all(contents.splits.values()):
        what = f"{store.shown}/{PACK_FILE} is broken, or of another version than {VERSION}"
        raise InputError(f"{what}: to pack into another folder would work")
    return contents


def _decoded(data: bytes) -> Contents | None:
    try:
        return msgspec.json.decode(data, type=Contents)
    except NO_JSON:
        return None
