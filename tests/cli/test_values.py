"""What is chosen of images once is kept: in a run, in caches and in packs; and masks of GeoTIFFs keep their place."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine

from commands import fails
from image_files import save
from models import SMALLEST_VIT
from regard.cli import main
from regard.data.datasets.scenes import Scenes
from regard.data.packs.contents import PACK_FILE
from regard.data.source import open_source
from regard.files import read_json, write_json
from regard.results import RUN_FILE
from regard.runs.run import load_run
from regard.settings import Values

CHOICE = ["--channels", "3,1,0", "--range", "0,10239"]
PLACE = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 4600000)}
VIT = ["--backbone", "vit_tiny_patch16_224", "--backbone_options", json.dumps(SMALLEST_VIT)]
SMALL = [*VIT, "--size", "32", "--epochs", "1", "--batch_size", "4", "--head", "linear", "--workers", "0", "--freeze"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Scenes as satellites see them: red, green and blue are channels 3, 1 and 0 of 5, 40 for a step of 255."""
    root, scenes = tmp_path_factory.mktemp("tree"), Scenes(6, size=32)
    for i in range(6):
        name = f"{'train' if i < 4 else 'val'}/{i}"
        bands = np.zeros((5, 32, 32), np.uint16)
        bands[[3, 1, 0]] = scenes.image(i).transpose(2, 0, 1) * np.uint16(40)
        path = root / f"images/{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path, "w", driver="GTiff", width=32, height=32, count=5, dtype="uint16", **PLACE) as file:
            file.write(bands)
        save(root / f"masks/{name}.png", scenes.mask(i))
    (root / "classes.txt").write_text("\n".join(scenes.classes))
    return root


@pytest.fixture(scope="module")
def segmented(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "segment"
    main(["segment", "--data", str(tree), *SMALL, *CHOICE, "--cache", str(out.parent / "cache"), "--out", str(out)])
    return out


def test_what_must_be_chosen_is_said_before_anything_is_trained(tree, tmp_path, capsys) -> None:
    said = fails(capsys, "segment", "--data", str(tree), *SMALL, "--out", str(tmp_path / "run"))
    assert "5 channels of 16-bit whole numbers: --channels 0,1,2 --range LOW,HIGH (or 1%,99%), for example" in said
    assert not (tmp_path / "run").exists()
    main(["data", "check", str(tree), *CHOICE])
    assert "nothing is wrong" in capsys.readouterr().out
    for words, line in (
        (["--channels", "0,1"], "2 channels: take 3, for red, green and blue, or 1, for grey"),
        (["--channels", "0,x"], "--channels should be a list of whole numbers or null"),
        (["--range", "-5,-6"], "range -5,-6 is none"),
        (["--image_bits", "12"], "unknown option"),
    ):
        assert line in fails(capsys, "data", "info", str(tree), *words)


def test_a_run_reads_images_as_it_was_trained(tree, segmented, tmp_path) -> None:
    run, scenes = load_run(segmented), Scenes(6, size=32)
    assert run.description.settings.values == Values(channels=(3, 1, 0), range="0,10239")
    main(["predict", "--run", str(segmented), "--images", str(tree / "images/val"), "--out", str(tmp_path / "masks")])
    for i in (4, 5):
        with rasterio.open(tmp_path / f"masks/{i}.tif") as mask:
            assert (mask.crs, mask.transform, mask.shape) == (*PLACE.values(), (32, 32))
            assert mask.colormap(1)[2][:3] == tuple(run.palette[2])
            found = mask.read(1)
        np.testing.assert_array_equal(found, run.predict(scenes.image(i)))
        np.testing.assert_array_equal(found, np.array(Image.open(tmp_path / f"masks/{i}.tif")))
    assert {file.name for file in (tmp_path / "masks").iterdir()} == {"4.tif", "5.tif"}


def test_what_goes_to_the_hub_says_the_choice_and_keeps_it(segmented, tmp_path) -> None:
    main(["export", "--run", str(segmented), "--format", "hub", "--out", str(tmp_path / "hub")])
    assert "of channels 3,1,0, in the range 0,10239" in (tmp_path / "hub/README.md").read_text()
    assert load_run(tmp_path / "hub").description.settings.values == Values(channels=(3, 1, 0), range="0,10239")


def test_a_geotiff_is_not_written_over_what_is_not_a_mask_of_ours(tree, segmented, tmp_path, capsys) -> None:
    out = tmp_path / "masks"
    words = ["predict", "--run", str(segmented), "--images", str(tree / "images/val/4.tif"), "--out"]
    for _ in range(2):
        main([*words, str(out)])
    save(out / "4.tif", np.zeros((4, 6), np.uint8))
    capsys.readouterr()
    assert "4.tif was not made by `regard predict`" in fails(capsys, *words, str(out))
    before = (tree / "images/val/4.tif").read_bytes()
    assert "choose another --out" in fails(capsys, *words, str(tree / "images/val"))
    assert (tree / "images/val/4.tif").read_bytes() == before


def test_another_choice_has_features_of_its_own_in_the_cache(tree, segmented, tmp_path) -> None:
    cache = segmented.parent / "cache"
    kept = {path.name for path in cache.iterdir()}
    words = [*SMALL, "--channels", "0,1,3", "--range", "1%,99%", "--cache", str(cache), "--out", str(tmp_path / "run")]
    main(["segment", "--data", str(tree), *words])
    assert {path.name for path in cache.iterdir()} > kept


def test_a_pack_keeps_the_choice_and_an_old_one_its_bits(tree, tmp_path) -> None:
    main(["data", "pack", str(tree), str(tmp_path / "pack"), *CHOICE])
    packed, scenes = open_source(tmp_path / "pack"), Scenes(6, size=32)
    for i in range(2):
        number = int(Path(packed.split("val").name(i)).stem)
        np.testing.assert_array_equal(packed.split("val").image(i), scenes.image(number))
    again = packed.read_as(Values(range="0,20479")).split("val").image(0)
    np.testing.assert_array_equal(again, packed.split("val").image(0) // 2)  # the channels are still the pack's
    contents = read_json(tmp_path / "pack" / PACK_FILE)
    contents = {key: value for key, value in contents.items() if key not in ("channels", "range")}
    write_json(tmp_path / "pack" / PACK_FILE, contents | {"image_bits": 12})
    assert open_source(tmp_path / "pack").split("val").values == Values(range="0,4095")


def test_a_run_on_a_pack_keeps_the_pack_s_choice_and_features_of_their_own(tree, tmp_path) -> None:
    said, keys = [], []
    for name, chosen in (("a", CHOICE), ("b", [*CHOICE[:3], "0,20479"])):
        main(["data", "pack", str(tree), str(tmp_path / name), *chosen])
        words = [*SMALL, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / f"run-{name}")]
        main(["segment", "--data", str(tmp_path / name), *words])
        said.append(load_run(tmp_path / f"run-{name}").description.settings.values)
        keys.append({path.name for path in (tmp_path / "cache").iterdir()})
    assert said == [Values(channels=(3, 1, 0), range=end) for end in ("0,10239", "0,20479")]
    assert keys[0] < keys[1]


def test_a_run_of_an_earlier_version_keeps_its_bits(segmented, tmp_path) -> None:
    before = read_json(segmented / RUN_FILE)
    before["settings"] = {k: v for k, v in before["settings"].items() if k not in ("channels", "range")}
    before["settings"]["image_bits"] = 12
    for file in segmented.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    write_json(tmp_path / RUN_FILE, before)
    assert load_run(tmp_path).description.settings.values == Values(range="0,4095")


def test_a_range_below_zero_is_taken_after_its_option(tmp_path, capsys) -> None:
    save(tmp_path / "0.tif", Image.fromarray(np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)))
    for words in (["--range", "-1,1"], ["--range=-1,1"], ["--range", "-1.5,90%"]):
        main(["data", "info", str(tmp_path), *words])
        said = capsys.readouterr()
        assert "could not be read" not in said.out + said.err
