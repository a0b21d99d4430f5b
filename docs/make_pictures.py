"""Makes the pictures of the README: `docs/front.jpg` and `docs/explorer.png`.

    pip install scikit-image selenium
    python docs/make_pictures.py DINOV2_VIT_S14_WEIGHTS [--run RUN]

The photos come with scikit-image: the cat Chelsea (Stéfan van der Walt, CC0), the astronaut Eileen Collins (NASA,
public domain), a Falcon 9 (SpaceX, CC0), a cup of coffee (Rachel Michetti, public domain).
RUN: a segmentation of two classes whose masks make a last column; that of the README is `regard segment --config
few_labels` on ten photos of COCO, in whose masks all of VOC's twenty kinds of things are one class, `object`.
The explorer is photographed by Chromium, if it is installed.
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from PIL import Image
from skimage import data

import regard
from regard.backbones import Backbone, normalize
from regard.evaluation.components import TokenColours
from regard.pictures.classes import class_overlay
from regard.pictures.draw import COLOURS, Picture, mosaic

HERE = Path(__file__).parent
PHOTOS = {"cat": data.chelsea, "astronaut": data.astronaut, "rocket": data.rocket, "coffee": data.coffee}
HEADS = range(6)  # of the last block
SIDE, CELL = 448, 150  # pixels: as the backbone sees a photo, and as it is drawn
PALETTE = np.array([(0, 0, 0), (0, 210, 255)], np.uint8)  # seen on orange, too
BRIGHTEST = 0.995  # quantile of a map that is drawn the brightest


def main() -> None:
    """Both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--run")
    asked = parser.parse_args()
    photos = {name: square(take()) for name, take in PHOTOS.items()}
    backbone = regard.build_backbone("vit_small_patch14_dinov2", weights=asked.weights).eval()
    run = regard.load_run(asked.run) if asked.run else None
    rows = []
    for photo in photos.values():
        cells = [photo, *read(backbone, photo)]
        if run is not None:
            cells.append(class_overlay(photo, run.predict(photo), run.classes, PALETTE))
        rows.append([cv2.resize(cell, (CELL, CELL), interpolation=cv2.INTER_AREA) for cell in cells])
    titles = ["photo", *(f"head {head}" for head in HEADS), "features", *(["from ten masks"] if run else [])]
    Image.fromarray(mosaic(rows, [""] * len(rows), titles)).save(HERE / "front.jpg", quality=90)
    photograph_explorer(photos, asked.weights)


def square(photo: Picture) -> Picture:
    """Its middle, SIDE x SIDE."""
    height, width = photo.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.asarray(Image.fromarray(photo[top : top + side, left : left + side]).resize((SIDE, SIDE)))


@torch.inference_mode()
def read(backbone: Backbone, photo: Picture) -> list[Picture]:
    """What HEADS look at, and the features in the colours of their three principal components."""
    features = backbone(normalize(torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]), attention=True)
    maps = features.attention[-1].weights[0, list(HEADS)].numpy()
    tokens = features.pyramid[-1][0]
    colours = TokenColours(tokens.flatten(1).T.numpy())(tokens)
    shares = [enlarged(weights / np.quantile(weights, BRIGHTEST)) for weights in maps]
    return [*(COLOURS[share] for share in shares), enlarged(colours)]


def enlarged(values: np.ndarray) -> np.ndarray:
    """From a grid of 0..1 to pixels of 0..255."""
    return (255 * cv2.resize(values, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).clip(0, 1)).astype(np.uint8)


def photograph_explorer(photos: dict[str, Picture], weights: str) -> None:
    """The explorer's page of the photos, with the pointer on the astronaut's chin."""
    from selenium import webdriver
    from selenium.webdriver.common.action_chains import ActionChains

    from regard.cli import main as command

    if not (browser := shutil.which("chromium") or shutil.which("google-chrome")):
        print("no Chromium: docs/explorer.png stays as it is")
        return
    with TemporaryDirectory() as folder:
        for name, photo in photos.items():
            Image.fromarray(photo).save(f"{folder}/{name}.png")
        files = [f"{folder}/{name}.png" for name in ("astronaut", "coffee")]
        said = "--backbone vit_small_patch14_dinov2 --size 336 --blocks 11 --explorer"
        command(["attention", *said.split(), "--weights", weights, "--images", *files, "--out", f"{folder}/out"])
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in ("--headless=new", "--no-sandbox", "--window-size=1200,1420"):
            options.add_argument(argument)
        with webdriver.Chrome(options=options) as driver:
            driver.get(Path(folder, "out", "explorer.html").as_uri())
            driver.implicitly_wait(5)
            for word in ("heat map", "smooth"):
                driver.find_element("xpath", f"//label[contains(., '{word}')]").click()
            driver.find_element("css selector", "#heads label:nth-child(5)").click()
            ActionChains(driver).move_by_offset(290, 390).click().perform()
            driver.execute_script("scrollTo(0, 0)")
            driver.save_screenshot(str(HERE / "explorer.png"))


if __name__ == "__main__":
    main()
