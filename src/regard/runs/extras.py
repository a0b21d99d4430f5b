"""What a run may be given besides data, network and settings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L

from regard.data.datasets.base import Dataset
from regard.results import Origin
from regard.settings import AS_STORED, Values


@dataclass(frozen=True)
class Cache:
    """Where features of frozen backbones are kept; content changes with the data's files: `data.source.fingerprint`."""

    folder: Path
    content: str

    def content_of(self, values: Values) -> str:
        """The content, where these values of the images are read."""
        return self.content if values == AS_STORED else f"{self.content}, {values.channels}, {values.range}"


@dataclass(frozen=True)
class Extras:
    """What a run may be given besides; none of it changes what is learnt.

    title:     of its progress bar.
    origin:    where data and weights came from, kept in its description for people.
    logger:    "wandb", beside CSV files and, where installed, TensorBoard.
    callbacks: called after the score of an epoch is in the curve.
    cache:     of a segmentation with a frozen backbone.
    queries:   of a pre-training: labelled images, whose classes kNN asks of the training images, then labelled too.
    """

    title: str = ""
    origin: Origin = field(default_factory=Origin)
    logger: str | None = None
    callbacks: Sequence[L.Callback] = ()
    cache: Cache | None = None
    queries: Dataset | None = None
