"""`python peak_memory.py COMMAND DATA OUT [COPIES]`: runs a command over small images here, and prints the peak of the
resident memory in bytes (Linux only). COPIES: of what is decoded so many stay in memory, to see that it shows.
"""

import re
import sys
from pathlib import Path

import torch

from regard.settings import (
    Device,
    EmbeddingPicture,
    Hardware,
    Inference,
    LoadedBatches,
    Model,
    ModelToTrain,
    PretrainSettings,
    Probing,
    Scoring,
    SurveyOptions,
    Watch,
)

VIT = "vit_tiny_patch16_224"
TINY: dict = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def pretrain(data: str, out: str) -> None:
    from regard.cli.train import pretrain

    model = ModelToTrain(backbone=VIT, backbone_options=TINY)
    settings = PretrainSettings(size=32, epochs=1, batch_size=4, method_options={"widths": [32, 32]})
    pretrain(data, model, settings, Watch(knn_every=1), Hardware(accelerator="cpu", workers=0), out)


def score(data: str, out: str) -> None:
    from regard.cli.score import score

    model, scoring = Model(backbone=VIT, backbone_options=TINY), Scoring(split="train", size=32, workers=0)
    score(data, model, scoring, Device(accelerator="cpu"), out)


def probe(data: str, out: str) -> None:
    from regard.cli.probe import probe

    model, probing = Model(backbone=VIT, backbone_options=TINY), Probing(split="val", size=32, workers=0, heads=False)
    probe(data, model, probing, Device(accelerator="cpu"), out)


def evaluate(data: str, out: str) -> None:
    from safetensors.torch import save_file

    from regard.backbones.weights import MODEL_FILE
    from regard.cli.use import evaluate
    from regard.results import write_stored
    from regard.runs.run import RUN_FILE
    from untrained import description, untrained_segmentation

    model = untrained_segmentation()
    write_stored(Path(out) / RUN_FILE, description(model))
    save_file(model.state_dict(), Path(out) / MODEL_FILE)
    evaluate(out, data, Inference(), Device(accelerator="cpu"), LoadedBatches(workers=0), "train")


def page(data: str, out: str, limit: int | None = None) -> None:
    from regard.cli.look import embed

    drawing = EmbeddingPicture(method="pca", split="train", size=32, limit=limit)
    embed(data, Model(backbone=VIT, backbone_options=TINY), drawing, Device(accelerator="cpu"), out)


def embed(data: str, out: str) -> None:
    from regard.pictures import embedding

    embedding.MOST = 0  # as where there are too many images for a page, which holds a thumbnail of each
    page(data, out, 100_000)


def info(data: str, out: str) -> None:
    from regard.cli.data import info

    info(data, SurveyOptions())


def keep_images(copies: int) -> None:
    from regard.data.datasets.folders import ImageFolder

    kept, read = [], ImageFolder.image

    def image(self, i):
        decoded = read(self, i)
        kept.extend(decoded.copy() for _ in range(copies))
        return decoded

    ImageFolder.image = image


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, data, out, *copies = sys.argv[1:]
    if copies:
        keep_images(int(copies[0]))
    {f.__name__: f for f in (pretrain, score, probe, evaluate, embed, page, info)}[command](data, out)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    print(f"peak {int(found[1]) * 1024}")
