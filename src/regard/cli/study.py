"""Commands that train many times: demo, compare, ablate, sweep; and report, which reads what they left."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regard.cli.parser import command_line
from regard.errors import TrainingStopped
from regard.say import counted, say
from regard.settings import (
    AttentionPictures,
    Computing,
    Device,
    Hardware,
    Model,
    ModelToTrain,
    Probing,
    SegmentSettings,
    StudyOptions,
    SweepOptions,
)

if TYPE_CHECKING:
    from regard.studies.plan import Plan

SHOWN = 12  # scenes in the demo's explorer


def demo(out: str = "runs/demo", jobs: int | None = None, seeds: int | None = None) -> str:
    """See what it does, on built-in scenes: segment with frozen backbones, probe them, see what heads look at. Minutes.

    Args:
        out: Folder of it all; a second call goes on where the first one stopped.
        jobs: Trainings side by side; by default as many as suit this machine.
        seeds: How many seeds each configuration is trained with; by default 5.
    """
    from PIL import Image

    from regard.cli.look import attention
    from regard.cli.probe import probe
    from regard.data.datasets.scenes import Scenes
    from regard.reports.probe_report import PROBE_FILE
    from regard.reports.report import write_report

    folder, vit = Path(out), Model(backbone="scenes/vit")
    said = compare("scenes", StudyOptions(study="demo", jobs=jobs, seeds=seeds), Computing(), out)
    if not (folder / "probe" / PROBE_FILE).is_file():  # what it writes last
        say(probe("scenes", vit, Probing(size=64), Device(), str(folder / "probe")))
    if len(list((folder / "attention").rglob("*.png"))) < SHOWN:
        scenes = Scenes(SHOWN, 64, split="test")
        (folder / "images").mkdir(exist_ok=True)
        for i in range(SHOWN):
            Image.fromarray(scenes.image(i)).save(folder / f"images/{i:02}.png")
        drawn = AttentionPictures(size=64, blocks="all", explorer=True)
        say(attention([str(folder / "images")], vit, drawn, Device(), str(folder / "attention")))
    write_report(folder)  # once more: it links the pages beside it
    return said


def compare(
    data: str,
    study: StudyOptions,
    computing: Computing,
    out: str = "runs/compare",
    baselines: bool = False,
    label_fractions: list[float] | None = None,
    frozen: Literal["no", "yes", "both"] = "no",
) -> str:
    """Compare backbones, pre-trainings and attention fusions on the same images, and write a report.

    Args:
        data: `scenes`; a path: images/ + masks/, VOC 2012, COCO-Stuff, ADE20K, Oxford-IIIT Pet, CamVid; a pack's URL.
        out: Folder of the comparison; a second call goes on where the first one stopped.
        baselines: Also the baselines: no fusion, another fusion, random weights.
        label_fractions: Each configuration with these shares of the training masks, such as 1 0.1 0.01.
        frozen: Leave the backbones as they are, or compare both.
    """
    command = command_line(compare, locals())
    from regard.studies.choose import comparison

    plan = comparison(study, baselines, label_fractions, frozen)
    return _run(plan, data, study, computing, Path(out), command)


def ablate(
    data: str,
    axis: list[str],
    study: StudyOptions,
    computing: Computing,
    out: str = "runs/ablate",
    base: str = "bt-swin-gate",
    grid: bool = False,
) -> str:
    """Vary one configuration along axes (fusion, head, layers, label_fraction, ...), and write a report.

    Args:
        data: `scenes`; a path: images/ + masks/, VOC 2012, COCO-Stuff, ADE20K, Oxford-IIIT Pet, CamVid; a pack's URL.
        axis: What to vary: fusion, head, layers, heads_kept, guidance, pretrain_guidance, label_fraction, freeze, crop,
            projector, lambda, or a setting of segmentation such as lr; with values as in label_fraction=1,0.1,0.01.
        out: Folder of the ablation; a second call goes on where the first one stopped.
        base: The configuration that is varied: one of the preset's, or of the study's.
        grid: Every combination of the values; otherwise one axis at a time, beside the base.
    """
    command = command_line(ablate, locals())
    from regard.studies.choose import variation

    plan = variation(study, axis, base, grid)
    return _run(plan, data, study, computing, Path(out), command)


def _run(plan: "Plan", data: str, study: StudyOptions, computing: Computing, out: Path, command: str) -> str:
    """What `compare` and `ablate` do with a plan. TrainingStopped, at the end, where a part of it failed."""
    from regard.data.source import check_readable, open_source
    from regard.studies.compare import compare as run
    from regard.studies.compare import open_study
    from regard.studies.estimate import estimate, show
    from regard.studies.jobs import Where, default_jobs

    source = open_source(data, scenes_size=plan.segment.size).read_as(plan.segment.values)
    hardware = Hardware(
        accelerator=computing.accelerator, precision=computing.precision, bar=computing.bar, workers=study.workers
    )
    every = len(plan.configurations) * len(plan.seeds)
    jobs = study.jobs or (every if study.cluster else default_jobs(hardware) * study.devices)
    check_readable(source, plan.segment.largest)
    if study.dry_run:
        return show(estimate(open_study(source, plan, out, hardware)), jobs)
    where = Where(jobs, study.devices, study.cluster, study.cluster_options)
    report, failures = run(source, plan, out, where, hardware, command)
    if failures:
        raise TrainingStopped(
            f"{counted(len(failures), 'part')} failed, the first: {failures[0].name}: {failures[0].error} "
            f"(tracebacks in {out / 'failures'}); the rest is in {report}"
        )
    return f"open {report} for the {'comparison' if plan.kind == 'compare' else 'ablation'}"


def sweep(
    data: str,
    model: ModelToTrain,
    settings: SegmentSettings,
    sweeping: SweepOptions,
    computing: Computing,
    out: str = "runs/sweep",
    seed: int = 0,
) -> str:
    """Search for the settings of a segmentation that score best on val, and write a report and a config of the best.

    Args:
        data: `scenes`; a path: images/ + masks/, VOC 2012, COCO-Stuff, ADE20K, Oxford-IIIT Pet, CamVid; a pack's URL.
        out: Folder of the sweep; a second call goes on, one beside the first works on the same trials.
        seed: Of weights, order, crops, and of what is tried.
    """
    command = command_line(sweep, locals())
    from regard.cli.common import built
    from regard.data.source import check_readable, open_source
    from regard.studies.space import default_space, read_space
    from regard.studies.sweep import run_sweep
    from regard.studies.sweep_plan import Sweep
    from regard.studies.sweep_results import best_command

    # what is wrong in the space is said before anything else is read
    given = read_space(sweeping.space) if sweeping.space else None
    source = open_source(data, scenes_size=settings.size).read_as(settings.values)
    space = given or default_space(built(model, seed), settings)
    hardware = Hardware(accelerator=computing.accelerator, precision=computing.precision, workers=sweeping.workers)
    check_readable(source, settings.largest)
    asked = Sweep(source, model, space, Path(out), settings, seed, sweeping.prune, hardware)
    best = run_sweep(asked, sweeping.trials, sweeping.jobs, command).best
    score = f"best on val: trial {best.number}, mIoU {100 * best.miou:.1f}%"
    return f"{score}; open {Path(out) / 'report.html'}; to train it again: {best_command(Path(out))}"


def report(directory: str) -> str:
    """Make the report of a comparison, an ablation or a sweep again, from its results.json alone.

    Args:
        directory: Folder of `regard compare`, `regard ablate` (also results.csv, table.tex and figures/) or
            `regard sweep`.
    """
    from regard.reports.report import RESULTS_FILE, write_report
    from regard.reports.sweep_report import write_sweep_report
    from regard.results import kind_of

    folder = Path(directory)
    return f"open {(write_sweep_report if kind_of(folder / RESULTS_FILE) == 'sweep' else write_report)(folder)}"
