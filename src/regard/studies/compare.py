"""`regard compare`: the configurations of a preset, side by side on the same images, with seeds and intervals.

The folder of a study, every part of which is written whole or not at all, so that a second call goes on where the first
one stopped:

    study.json                    what is compared; a folder belongs to one study
    pretraining/KEY/              a pre-training, done once and shared: `pretraining.pretrain_run`
    cells/CONFIGURATION/seed-N/   one training: `segmenting.segment_run`, and counts.npz, its confusion counts per image
    results.json, report.html     all of it, and the page made from it
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from regard.backbones import build_backbone, save_backbone
from regard.backbones.weights import BACKBONE_FILE
from regard.data.layout import Source, fingerprint, require_masks
from regard.errors import InputError, Interrupted
from regard.studies.folders import read_json, write_json
from regard.studies.jobs import console, run_all
from regard.studies.presets import CONFIGURATIONS, Configuration, Preset, preset
from regard.studies.pretraining import PRETRAIN_FILE, pretrain_run
from regard.studies.report import write_report
from regard.studies.results import CELL_FILE, COUNTS_FILE, cell_folder, collect, plain, scored_split
from regard.studies.runs import MODEL_FILE, RUN_FILE, load_run, summary
from regard.studies.segmenting import segment_run
from regard.studies.training import Hardware

MIN_IMAGES = 8  # a batch that batch statistics can be taken over
STUDY_FILE, RESULTS_FILE = "study.json", "results.json"


def compare(
    source: Source,
    preset_name: str,
    out: Path,
    seeds: int | None = None,
    baselines: bool = False,
    size: int | None = None,
    jobs: int = 1,
    hardware: Hardware = Hardware(),
    command: str = "regard.studies.compare",
) -> Path:
    """Run what is not finished yet of a comparison, and write `results.json` and `report.html`; returns the latter.

    The best epoch of each training is chosen on `val`; the scores are those on `test` where there is one.
    Raises InputError for data without masks, an unknown preset, or a folder that holds another study.
    """
    require_masks(source)
    for split in ("train", "val"):
        source.split(split)
    chosen = preset(preset_name, size)
    wanted = [c for c in CONFIGURATIONS if baselines or not c.baseline]
    seeds = chosen.seeds if seeds is None else seeds
    _check_enough(source)
    _claim(out, source, preset_name, chosen, hardware)

    console.print(f"[bold]data[/]     {source.describe()}")
    console.print(f"[bold]compare[/]  {len(wanted)} configurations x {seeds} seeds, preset {preset_name}, into {out}")
    keys = dict.fromkeys(c.pretraining for c in wanted if c.pretraining)
    stages = {
        "weights": [(_pretrain, key, (key,)) for key in sorted(keys, key=_is_barlow_twins)],  # DINO, the longest, first
        "training": [(_cell, f"{c.name}, seed {seed}", (c, seed)) for seed in range(seeds) for c in wanted],
    }
    try:
        run_all(stages, Study(source, chosen, out, hardware), jobs)
    except (KeyboardInterrupt, Interrupted):
        whole = next((seed for seed in range(seeds) if not all(_finished(out, c, seed) for c in wanted)), seeds)
        if whole:  # a report of the seeds that every configuration has finished
            results = collect(source, preset_name, chosen, wanted, whole, out, command, hardware, complete=False)
            write_json(out / RESULTS_FILE, results)
            write_report(out)
        raise
    results = collect(source, preset_name, chosen, wanted, seeds, out, command, hardware, complete=True)
    write_json(out / RESULTS_FILE, results)
    return write_report(out)


def _check_enough(source: Source) -> None:
    """InputError where there are too few images to pre-train on at all."""
    images = len(source.split("train"))
    if images < MIN_IMAGES:
        raise InputError(f"{images} training images are too few to compare anything: take {MIN_IMAGES} or more")


def _claim(out: Path, source: Source, preset_name: str, chosen: Preset, hardware: Hardware) -> None:
    """A folder belongs to one study: its cells must not mix with those of another."""
    study = {
        "source": source.root,
        "data": fingerprint(source, out),
        "precision": [hardware.device, hardware.precision],
        "preset": preset_name,
        "settings": asdict(chosen),
    }
    study = plain(study)
    if (out / STUDY_FILE).is_file():
        there = read_json(out / STUDY_FILE)
        differs = [key for key in study if there.get(key) != study[key]]
        if differs:
            raise InputError(
                f"{out} holds another comparison ({', '.join(differs)} differ): choose another --out, or delete it"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no comparison: choose another --out")
    else:
        write_json(out / STUDY_FILE, study)


def _is_barlow_twins(key: str) -> bool:
    return key.startswith("barlow_twins")


@dataclass(frozen=True)
class Study:
    """What every pre-training and every cell of a study shares."""

    source: Source
    preset: Preset
    out: Path
    hardware: Hardware


def _pretrain(study: Study, title: str, key: str) -> str:
    """Make `pretraining/KEY`, from published weights where the preset names some and they come. Says what came."""
    chosen, out = study.preset, study.out
    folder = out / "pretraining" / key
    if (folder / PRETRAIN_FILE).is_file():
        return "finished before"
    train = study.source.split("train")
    settings = chosen.pretrainings[key]
    settings = replace(settings, batch_size=min(settings.batch_size, len(train)))
    choice = chosen.backbones[key.rsplit("-", 1)[1]]
    reason = "no weights are published for a backbone this small" if settings.method == "dino" else ""
    if key in chosen.published:
        published = chosen.published[key]
        try:
            backbone = build_backbone(published, pretrained=True, **choice.options)
        except InputError as error:
            reason = f"published weights {published} could not be fetched: {error}"
        else:
            folder.mkdir(parents=True, exist_ok=True)
            save_backbone(backbone, folder / BACKBONE_FILE)
            origin = f"published weights: timm {published}"
            write_json(folder / PRETRAIN_FILE, {"origin": origin, "seconds": 0.0, "curve": []})
            return origin
    origin = f"pre-trained here: {settings.epochs} epochs of {len(train)} images, without labels"
    origin += f" ({reason})" if reason else ""
    torch.manual_seed(0)
    made = pretrain_run(train, choice.build(), settings, folder, 0, study.hardware, title, origin)
    return f"{origin}, {made['seconds']:.0f} s"


def _cell(study: Study, title: str, configuration: Configuration, seed: int) -> str:
    """Train and score one configuration with one seed; `cell.json` comes last. Says what came."""
    chosen, out = study.preset, study.out
    folder = cell_folder(out, configuration.name, seed)
    if _finished(out, configuration, seed):
        return "finished before"
    splits = require_masks(study.source)
    torch.manual_seed(seed)
    if configuration.pretraining:
        backbone = build_backbone(out / "pretraining" / configuration.pretraining)
    else:
        backbone = chosen.backbones[configuration.backbone].build()
    if study.hardware.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    segment_run(
        splits["train"], splits["val"], backbone, configuration.fusion, chosen.segment, folder, seed, study.hardware,
        title,
    )  # fmt: skip
    peak = torch.cuda.max_memory_allocated() / 2**20 if study.hardware.on_gpu else None
    run = load_run(folder, study.hardware.device)
    counts = run.evaluate(splits[scored_split(splits)])
    np.savez_compressed(folder / COUNTS_FILE, counts=counts)
    cell = {**summary(run, counts), "peak_memory_mb": peak}
    write_json(folder / CELL_FILE, cell)
    return f"mIoU {100 * cell['miou']:.1f}%"


def _finished(out: Path, configuration: Configuration, seed: int) -> bool:
    folder = cell_folder(out, configuration.name, seed)
    return all((folder / file).is_file() for file in (RUN_FILE, MODEL_FILE, COUNTS_FILE, CELL_FILE))
