"""Pictures of maps: cells lie exactly over their patches, colours mean what they say, mosaics and animations add up."""

import numpy as np
import pytest
import torch
from PIL import Image

from models import SWIN, TINY_SWIN, TINY_VIT, VIT
from regard.attention.metrics import mass_mask
from regard.attention.reading import BlockMaps, HeadReader
from regard.backbones import build_backbone
from regard.errors import InputError
from regard.pictures.animation import write_animation
from regard.pictures.draw import (
    COLOURS,
    GAP,
    OUTLINE,
    channel_map,
    cut_out,
    enlarge,
    heat_map,
    mosaic,
    overlay,
    pixel_mask,
    titled,
)
from regard.pictures.panels import Style, head_pictures, heads_mosaic
from regard.pictures.reading import covering

RANDOM = np.random.default_rng(0)


def picture(height: int, width: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_an_even_map_is_drawn_evenly(upsample) -> None:
    drawn = heat_map(np.full((3, 5), 1 / 15, np.float32), (20, 36), 8, upsample=upsample)
    assert drawn.shape == (20, 36, 3)
    assert (drawn == COLOURS[255]).all()
    assert (heat_map(np.zeros((3, 5), np.float32), (20, 36), 8, upsample=upsample) == COLOURS[0]).all()


@pytest.mark.parametrize(("size", "stride"), [((16, 24), 8), ((13, 22), 8), ((33, 65), 16), ((7, 9), 1)])
def test_nearest_puts_each_cell_over_its_patch(size: tuple[int, int], stride: int) -> None:
    rows, columns = (-(-side // stride) for side in size)
    cells = RANDOM.random((rows, columns)).astype(np.float32)
    large = enlarge(cells, size, stride)
    assert large.shape == size
    for y in range(size[0]):
        for x in range(size[1]):
            assert large[y, x] == cells[y // stride, x // stride]


def test_bilinear_meets_the_cells_at_their_centres_and_goes_straight_between() -> None:
    cells = np.array([[0.0, 1.0, 3.0]], np.float32)
    row = enlarge(cells, (3, 9), 3, "bilinear")[1]
    np.testing.assert_allclose(row, [0, 0, 1 / 3, 2 / 3, 1, 5 / 3, 7 / 3, 3, 3], atol=1e-6)


def test_a_grid_of_another_image_is_refused() -> None:
    with pytest.raises(InputError, match="a grid of 3 x 5 does not cover 20 x 44 pixels by patches of 8"):
        enlarge(np.zeros((3, 5), np.float32), (20, 44), 8)


def test_colours_are_relative_to_the_top_and_end_there() -> None:
    cells = np.array([[0.1, 0.2, 0.4]], np.float32)
    own, fixed = heat_map(cells, (1, 3), 1), heat_map(cells, (1, 3), 1, top=0.2)
    assert (own[0] == COLOURS[[63, 127, 255]]).all()
    assert (fixed[0] == COLOURS[[127, 255, 255]]).all()


def test_an_overlay_keeps_the_size_and_shows_both() -> None:
    """The image the more, the less a head looks there: at 0 the heat map has half of its opacity."""
    image, cells = np.full((13, 22, 3), 200, np.uint8), np.array([[0, 0, 0], [0, 1, 0]], np.float32)
    drawn = overlay(image, cells, 8, opacity=0.6)
    assert drawn.shape == image.shape
    assert (drawn[0, 0] == (0.3 * COLOURS[0] + 0.7 * 200).astype(int)).all()
    assert (drawn[8, 8] == (0.6 * COLOURS[255] + 0.4 * 200).astype(int)).all()
    assert (overlay(image, cells, 8, opacity=0.0) == image).all()


@pytest.mark.parametrize(
    ("size", "part"),
    [((4, 6), np.s_[:, :]), ((4, 2), np.s_[:, 2:4]), ((2, 6), np.s_[1:3, :])],
)
def test_an_image_covers_a_frame_without_bars(size, part) -> None:
    image = picture(4, 6)
    assert (covering(image, size) == image[part]).all()
    assert covering(picture(7, 5), (8, 12)).shape == (8, 12, 3)


@pytest.mark.parametrize("mass", [60, 90])
def test_masks_are_the_recorded_ones_over_their_patches(recorded, mass: int) -> None:
    data = recorded("attention_mass_mask")
    masks = mass_mask(data["attention"], mass / 100)
    for ours, theirs in zip(masks.numpy(), data[f"mask_{mass}"].numpy(), strict=True):
        drawn = pixel_mask(ours, (32, 32), 4)
        assert (drawn == theirs.repeat(4, axis=0).repeat(4, axis=1)).all()


def test_what_is_cut_out_keeps_its_colours_and_the_rest_is_pale_behind_a_line() -> None:
    image, mask = picture(13, 22), np.array([[True, False, False], [False, False, True]])
    drawn = cut_out(image, mask, 8)
    inside = pixel_mask(mask, (13, 22), 8)
    assert (drawn[inside] == image[inside]).all()
    line = (drawn == OUTLINE).all(axis=-1) & ~inside
    assert line[:9, 8].all()
    assert line[8, :9].all()  # just outside the first patch
    rest = drawn[~inside & ~line]
    assert (rest >= 170).all()
    assert (rest == rest[:, :1]).all()
    assert line.sum() == 9 + 8 + 7 + 5  # and around the last patch, which the image cuts to 5 x 6


def test_a_channel_goes_from_its_minimum_to_its_maximum() -> None:
    drawn = channel_map(np.array([[-3.0, 1.0], [0.0, 5.0]], np.float32), 4)
    assert drawn.shape == (8, 8, 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 4
    assert (channel_map(np.full((2, 2), 7.0, np.float32), 4) == drawn[0, 0]).all()


def test_without_labels_a_mosaic_is_cells_and_gaps() -> None:
    cells = [picture(20, 30) for _ in range(4)]
    made = mosaic([[cells[0], cells[1], cells[2]], [None, cells[3]]], ["", ""], [])
    assert made.shape == (2 * 20 + GAP, 3 * 30 + 2 * GAP, 3)
    for cell, (row, column) in zip(cells, [(0, 0), (0, 1), (0, 2), (1, 1)], strict=True):
        y, x = row * (20 + GAP), column * (30 + GAP)
        assert (made[y : y + 20, x : x + 30] == cell).all()
    assert (made[24:, :30] == 255).all()
    assert (made[24:, -30:] == 255).all()
    assert (made[20:24] == 255).all()


def test_labels_take_a_margin_and_leave_the_cells_alone() -> None:
    cell = np.full((40, 60, 3), (7, 200, 9), np.uint8)
    made = mosaic([[cell, cell], [cell, cell]], ["block 0", "block 11"], ["image", "head 0"], "some words " * 9)
    is_cell = (made == cell[0, 0]).all(axis=-1)
    rows, columns = np.flatnonzero(is_cell.any(axis=1)), np.flatnonzero(is_cell.any(axis=0))
    assert is_cell.sum() == 4 * 40 * 60
    assert (rows[0], columns[0]) > (0, 0)
    assert columns[-1] == made.shape[1] - 1  # no caption or label makes it wider
    for y, x in [
        (slice(0, rows[0]), slice(None)),
        (slice(None), slice(0, columns[0])),
        (slice(rows[-1] + 1, None),) * 2,
    ]:
        assert (made[y, x] < 128).any()  # letters


def test_a_title_is_a_strip_above() -> None:
    image = picture(20, 50)
    made = titled(image, "channel 7")
    assert made.shape[1] == 50
    assert (made[-20:] == image).all()
    assert (made[:-20] < 128).any()


@pytest.mark.parametrize("what", ["overlay", "heat", "mask"])
def test_the_mosaic_of_heads_holds_each_head_at_its_place(what) -> None:
    image = picture(32, 48)
    maps = [
        BlockMaps(0, (0,), 8, torch.rand(1, 4, 6)),
        BlockMaps(3, (0, 2), 16, torch.rand(2, 2, 3)),
    ]
    style = Style(what)
    made = heads_mosaic(image, maps, style, "caption")
    names = {"overlay": "-overlay", "heat": "-heat", "mask": "-mask"}
    for name, drawn in head_pictures(image, maps, style):
        if not name.endswith(names[what]):
            continue
        if what == "mask":
            drawn = np.where(drawn[..., None] > 0, image, 0)
            shown = np.where(drawn > 0, made_at(made, image, name), 0)
        else:
            shown = made_at(made, image, name)
        assert (shown == drawn).all()
    left, top = corner(made, image)
    second = made[top : top + 32, left + 2 * 52 : left + 2 * 52 + 48]
    assert (second == 255).all()  # block 0 has no head 2


def corner(made: np.ndarray, image: np.ndarray) -> tuple[int, int]:
    """(left, top) of the first cell, which is the image."""
    height, width = image.shape[:2]
    for top in range(made.shape[0] - height):
        for left in range(made.shape[1] - width):
            if (made[top : top + height, left : left + width] == image).all():
                return left, top
    raise AssertionError("the image is not in the mosaic")


def made_at(made: np.ndarray, image: np.ndarray, name: str) -> np.ndarray:
    left, top = corner(made, image)
    row = 0 if "block0" in name else 1
    column = 2 if "head2" in name else 1
    y, x = top + row * (32 + GAP), left + column * (48 + GAP)
    return made[y : y + 32, x : x + 48]


def test_a_style_keeps_the_largest_maximum_of_a_series() -> None:
    style = Style()
    for top in (0.2, 0.7, 0.4):
        style.scale_by([BlockMaps(5, (0, 1), 8, torch.full((2, 1, 1), top) * torch.tensor([1.0, 0.5]).view(2, 1, 1))])
    torch.testing.assert_close(style.tops[5], torch.tensor([0.7, 0.35]))


def swin():
    return build_backbone(SWIN, **TINY_SWIN).eval()


def test_a_reader_gives_the_backbones_own_maps() -> None:
    backbone, image = build_backbone(VIT, **TINY_VIT).eval(), torch.randn(1, 3, 64, 40)
    found = HeadReader(backbone, "received", [-1, 0], [2, 0])(image)
    maps = backbone(image, attention="received", blocks=[3, 0]).attention
    assert [block.block for block in found] == [3, 0]
    for block, expected in zip(found, maps, strict=True):
        assert (block.heads, block.stride) == ((2, 0), 8)
        torch.testing.assert_close(block.weights, expected.weights[0, [2, 0]])
    (rolled,) = HeadReader(backbone, "rollout")(image)
    torch.testing.assert_close(rolled.weights, backbone.rollout(image))


def test_blocks_give_the_heads_that_they_have_and_are_left_out_without() -> None:
    backbone, image = swin(), torch.randn(1, 3, 64, 64)
    assert [block.heads for block in HeadReader(backbone)(image)] == [(0,), (0, 1), (0, 1, 2)]
    found = HeadReader(backbone, blocks="all", heads=[1, 2])(image)
    assert [(block.block, block.heads) for block in found] == [(2, (1,)), (3, (1,)), (4, (1, 2)), (5, (1, 2))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cls"}, "no cls attention: it has pooled, received"),
        ({"blocks": [6]}, "no block 6: it has 0 to 5"),
        ({"heads": [3]}, "have no head 3: 0 to 2"),
        ({"heads": [-1]}, "have no head -1"),
        ({"heads": []}, "no blocks or no heads"),
        ({"blocks": []}, "no blocks of .* are asked for"),
        ({"kind": "rollout", "heads": [0]}, "leave out --blocks and --heads"),
    ],
)
def test_what_a_backbone_has_not_is_refused(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HeadReader(swin(), **options)


def test_a_gif_has_every_picture_for_its_time_even_equal_ones(tmp_path) -> None:
    pictures = [np.full((10, 12, 3), value, np.uint8) for value in (0, 0, 90, 255)]
    assert write_animation(tmp_path / "a.gif", iter(pictures), 5) == 4
    with Image.open(tmp_path / "a.gif") as made:
        assert (made.n_frames, made.size, made.info["loop"]) == (4, (12, 10), 0)
        for number, expected in enumerate(pictures):
            made.seek(number)
            assert made.info["duration"] == 200
            assert (np.asarray(made.convert("RGB")) == expected).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize("pictures", [[], [(10, 12), (12, 10)]])
def test_an_animation_that_fails_leaves_nothing(tmp_path, pictures) -> None:
    with pytest.raises(InputError, match="frames"):
        write_animation(tmp_path / "a.gif", (picture(*size) for size in pictures), 5)
    assert not list(tmp_path.iterdir())


def test_an_mp4_gets_every_pixel_through_ffmpeg(tmp_path, monkeypatch) -> None:
    stand_in = tmp_path / "bin" / "ffmpeg"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$(dirname "$0")/said"\ncat > "$last"\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(stand_in.parent), prepend=":")
    pictures = [picture(9, 11) for _ in range(3)]
    assert write_animation(tmp_path / "a.mp4", iter(pictures), 12) == 3
    assert (tmp_path / "a.mp4").read_bytes() == b"".join(p.tobytes() for p in pictures)
    assert "-s 11x9 -r 12" in (stand_in.parent / "said").read_text()

    stand_in.write_text("#!/bin/sh\necho 'no such encoder' >&2\nexit 1\n")
    with pytest.raises(InputError, match="no such encoder"):
        write_animation(tmp_path / "b.mp4", iter(pictures), 12)
    assert not (tmp_path / "b.mp4").exists()
