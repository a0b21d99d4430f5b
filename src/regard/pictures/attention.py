"""What `regard attention` draws: mosaics, an animation, the explorer page."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from rich.progress import track

from regard.attention.reading import HeadReader
from regard.backbones import Backbone
from regard.backbones.vit import ViT
from regard.errors import InputError
from regard.pictures.animation import check_animation, write_animation
from regard.pictures.draw import Picture, save_png
from regard.pictures.explorer import write_explorer
from regard.pictures.panels import Style, head_pictures, heads_mosaic
from regard.pictures.reading import as_batch, count_pictures, covering, fed, read_pictures
from regard.pictures.targets import outputs
from regard.say import console, counted
from regard.settings import AttentionPictures

SCALE_FRAMES = 32  # frames that the colours of an animation are scaled by: evenly spaced, since each costs a forward
EXPLORED = 16  # images in the explorer at most


def draw_attention(
    open_model: Callable[[], Backbone], images: Sequence[str], chosen: AttentionPictures, out: Path
) -> str:
    """Write a mosaic for every image into `out`, or what else is chosen; says what was made.

    open_model: gives the backbone, once what is chosen is known to go together.

    Raises InputError for what does not, a backbone or a head that is not there, and images that are none.
    """
    if chosen.explorer and chosen.kind == "rollout":
        raise InputError("the explorer shows single blocks, not a rollout: leave out --explorer, or --kind")
    if chosen.animate:
        check_animation(chosen.animate)
    model = open_model()
    blocks = (chosen.blocks,) if isinstance(chosen.blocks, int) else chosen.blocks
    heads = (chosen.heads,) if isinstance(chosen.heads, int) else chosen.heads
    reader = HeadReader(model, chosen.kind, blocks, heads)
    files = outputs(images, str(out))
    animation = out / f"attention.{chosen.animate}"
    if animation.resolve() in {file.resolve() for file in files}:
        raise InputError(f"{animation} is one of the videos, and would be written over: choose another --out")
    total = count_pictures(files)
    fit = _OfOneSize(chosen.size) if chosen.animate else partial(fed, size=chosen.size)
    pictures = partial(read_pictures, files, fit, chosen.values)
    style = Style(chosen.what, chosen.mass, chosen.upsample)
    if chosen.animate:
        for _, read in islice(pictures(), 0, None, -(-total // SCALE_FRAMES)):
            style.scale_by(reader(as_batch(read(), model)))
    said = reader.describe() + (f", {model.positions}'s positions" if isinstance(model, ViT) else "")

    def mosaics() -> Iterator[tuple[Path, Picture]]:
        for target, read in track(pictures(), "drawing", total, transient=True, console=console()):
            image = read()
            maps = reader(as_batch(image, model))
            if chosen.each:
                for name, picture in head_pictures(image, maps, style):
                    save_png(target.with_suffix("") / f"{name}.png", picture)
            yield target, heads_mosaic(image, maps, style, said)

    beside = ""
    if chosen.explorer:  # first, since it may refuse images that are too large
        spaced = islice(pictures(), 0, None, -(-total // EXPLORED))
        named = [
            (target.relative_to(out).with_suffix("").as_posix(), read()) for target, read in islice(spaced, EXPLORED)
        ]
        page = write_explorer(out / "explorer.html", model, named, reader.kind, reader.blocks, chosen.mass)
        beside = f"; {len(named)} of them in {page}"
    if chosen.animate:
        made = write_animation(animation, (picture for _, picture in mosaics()), chosen.fps)
        return f"{counted(made, 'frame')} in {animation}: {said}{beside}"
    made = 0
    for target, picture in mosaics():
        save_png(target, picture)
        made += 1
    return f"{counted(made, 'mosaic')} in {out}: {said}{beside}"


class _OfOneSize:
    """Brings the frames of an animation to the size of the first one that it is given."""

    def __init__(self, short: int) -> None:
        self.short = short
        self.size: tuple[int, int] | None = None

    def __call__(self, image: Picture) -> Picture:
        self.size = self.size or fed(image, self.short).shape[:2]
        return covering(image, self.size)
