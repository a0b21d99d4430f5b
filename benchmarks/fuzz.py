"""Does a damaged or hostile file ever do anything but load, or be refused in one line?

For each reader good small files are made, changed (`mutations`), and read in forked processes. Fine are an answer, and
an InputError of one line. A finding is all else: another exception, death by a signal, `SECONDS` for one call, `MOST`
bytes resident beyond what torch takes, an error that comes of memory (no process gets more than `ROOM` of addresses
beyond those that it begins with), code of a file that ran. An input follows from reader, seed and number; those that
were found are kept in a folder, to be read again:

    python benchmarks/fuzz.py --minutes 10 --out fuzz.json
    python benchmarks/fuzz.py --only images --replay runs/fuzz/images-0-4711
"""

import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import time
import traceback
import zlib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from hashlib import sha256
from math import prod
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mutations import MARKER, changed
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat
from side_by_side import table, write

from regard.backbones import Backbone, build_backbone, save_backbone
from regard.backbones.checkpoints import read_state
from regard.backbones.weights import load_weights
from regard.cli import COMMANDS, build_parser, parsed
from regard.data import names, reading, reading_masks
from regard.data.datasets.published import read_mat
from regard.data.datasets.scenes import Scenes
from regard.data.packs.contents import PACK_FILE
from regard.data.packs.packed import open_pack
from regard.data.packs.packing import pack
from regard.data.source import open_source
from regard.errors import InputError, first_line
from regard.files import RECIPES, read_yaml
from regard.results import RUN_FILE, SETTINGS_FILE
from regard.runs import feature_cache
from regard.runs.choosing_heads import CHOICE_FILE, remembered_choice
from regard.runs.export import save_onnx, save_safetensors
from regard.runs.extras import Cache, Extras
from regard.runs.feature_cache import SAMPLES_FILE, TENSORS_FILE
from regard.runs.folders import run_folder
from regard.runs.run import load_run
from regard.runs.segmenting import segment_run
from regard.settings import BOUND, Hardware, SegmentSettings
from regard.studies.plan_file import read_plan
from regard.studies.space import read_space
from regard.training.stopping import CHECKPOINTS, last_whole_checkpoint

SECONDS, MOST, ROOM = 10, 1 << 30, 8 << 30
HEAD = ("reader", "inputs", "fine", "refused", "findings", "longest, s", "peak, MB")
MEMORY = Path("/dev/shm")  # where there is one, inputs touch no disk
SAID = "stdout"
FORK = get_context("fork")
LIFE = 500  # inputs of a process, after which another takes its place
PROCESSES = os.cpu_count() or 1
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
COLORED = names.Legend(("a", "b"), {}, {(0, 0, 0): 0, (255, 0, 0): 1})
RUN_SETTINGS = {"images": {"train": 8, "val": 2}, "files": "0f" * 32, "settings": asdict(SegmentSettings())}
Files = dict[str, bytes]
os.environ[BOUND] = "30"  # megapixels: several times that many bytes are in no bound on an image
Reads = Iterable[Callable[[], object]]


@dataclass(frozen=True)
class Reader:
    """make: writes good files, those of a case into a folder of a folder. reads: what is called of a case.
    only: the files that are changed. settle: makes sums fit again.
    """

    make: Callable[[Path], None]
    reads: Callable[[Path], Reads]
    only: str = ""
    settle: Callable[[Files], None] = lambda files: None


def _new(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _make_images(root: Path) -> None:
    rgb = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8), (5, 5), 0)
    image, exif = Image.fromarray(rgb), Image.Exif()
    exif[0x112] = 6
    packed = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "raw", "tiff_lzw")
    for mode, compression in zip(("RGB", "L", "CMYK", "RGBA", "LA", "P", "1"), packed, strict=True):
        more = {"exif": exif, "progressive": mode == "L", "lossless": mode == "RGBA"}
        for suffix in ("jpg", "png", "tif", "bmp", "gif", "webp"):
            with suppress(OSError, ValueError):  # not every format has every mode
                file = _new(root / mode / suffix / f"x.{suffix}")
                image.convert(mode).save(file, **({"compression": compression} if suffix == "tif" else more))
    for channels, suffix in itertools.product((1, 3), ("png", "tif")):
        cv2.imwrite(str(_new(root / f"16{channels}/{suffix}/x.{suffix}")), rgb[..., :channels].astype(np.uint16) * 16)


def _read_images(folder: Path) -> Reads:
    (path,) = folder.iterdir()
    data, third = path.read_bytes(), lambda size: (size[0] // 3, size[1] // 3)
    yield from (partial(read, path) for read in (reading.read_image, reading.image_size))
    yield from (partial(reading.decode_image, data, path, *options) for options in ((third,), (None, 12)))
    yield partial(reading.bits_in_use, data, path)


def _make_masks(root: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (30, 40), np.uint8)
    indexed = Image.fromarray(mask).convert("P")
    indexed.putpalette([0, 0, 0, 255, 0, 0])
    kinds = [indexed, Image.fromarray(mask), Image.fromarray(mask > 0), indexed.convert("RGB")]
    for image, suffix in itertools.product(
        [*kinds, Image.fromarray(mask.astype(np.uint16))], ("png", "tif", "gif", "bmp")
    ):
        with suppress(OSError):
            image.save(_new(root / image.mode / suffix / f"x.{suffix}"))
    indexed.save(_new(root / "few bits/png/x.png"), bits=2)
    savemat(_new(root / "of MATLAB/mat/x.mat"), {"S": mask}, do_compression=True)


def _read_masks(folder: Path) -> Reads:
    (path,) = folder.iterdir()
    if path.suffix == ".mat":
        return [partial(read_mat, path, "S", lambda content: content["S"])]
    labels = [partial(reading_masks.read_labels, path, one) for one in (COLORED, names.numbered(("a", "b")))]
    return [partial(reading_masks.read_mask, path), partial(reading_masks.read_palette, path), *labels]


def _make_names(root: Path) -> None:
    """Trees whose classes and lists are in files of text, and what people write as YAML."""
    scenes, folders = Scenes(3, 32), {"voc": "JPEGImages SegmentationClass", "a": "images masks", "b": "img ann"}
    for (name, both), i in itertools.product(folders.items(), range(3)):
        for folder, pixels in zip(both.split(), (scenes.image(i), scenes.mask(i)), strict=True):
            Image.fromarray(pixels).save(_new(root / "trees" / name / folder / f"{i}.png"))
    _new(root / "trees/voc/ImageSets/Segmentation/train.txt").write_text("0\n1.png\n")
    _new(root / "trees/voc/ImageSets/Segmentation/val.txt").write_text("2\n")
    colors = dict(zip(Scenes.classes, scenes.palette.tolist(), strict=True))
    lines = ["# label:color_rgb:parts:actions", *(f"{name}:{str(color)[1:-1]}::" for name, color in colors.items())]
    (root / "trees/voc/labelmap.txt").write_text("\n".join(lines))
    entries = [{"name": name, "value": i, "color": color} for i, (name, color) in enumerate(colors.items())]
    (root / "trees/a/classes.json").write_text(json.dumps(entries))
    (root / "trees/b/classes.txt").write_text("\n".join(colors))
    for config, name in (("camvid_compare", "plan"), ("sweep", "space"), ("dino_small_images", "pretrain")):
        shutil.copy(RECIPES / f"{config}.yaml", _new(root / f"yaml/{name}/{name}.yaml"))


def _read_names(folder: Path) -> Reads:
    (path, *others) = sorted(folder.iterdir())
    if others:
        return [partial(_first_samples, open_source, folder)]
    words = ["pretrain", "--config", str(path), "--data", "x", "--out", "y"]
    kinds = {"plan": partial(read_plan, path), "space": partial(read_space, path)}
    return [partial(read_yaml, path), kinds.get(path.stem, partial(_command_line, words))]


def _command_line(words: list[str]) -> None:
    try:
        parsed(build_parser(COMMANDS), COMMANDS, words)
    except SystemExit as stop:
        if stop.code != 2:
            raise RuntimeError(f"exit status {stop.code}") from stop


def _first_samples(opening: Callable[[Path], Any], folder: Path) -> None:
    for dataset in opening(folder).splits.values():
        for i, part in itertools.product(range(min(len(dataset), 8)), ("name", "image", "mask", "label")):
            getattr(dataset, part, lambda i: None)(i)


@cache
def _tiny_backbone() -> Backbone:
    return build_backbone("vit_tiny_patch16_224", **TINY)


def _make_weights(root: Path) -> None:
    state = _tiny_backbone().model.state_dict()
    whole = {"state_dict": state, "args": Namespace(lr=np.float64(0.1), epochs=3), "epoch": 3}
    torch.save(state, _new(root / "torch/plain/x.pth"))
    torch.save(whole, _new(root / "torch/args/x.pth"))
    torch.save(whole, _new(root / "torch/legacy/x.pt"), _use_new_zipfile_serialization=False)
    save_file(state, _new(root / "safetensors/plain/x.safetensors"))
    save_backbone(_tiny_backbone(), _new(root / "safetensors/ours/x.safetensors"))


def _read_weights(folder: Path) -> Reads:
    (path,) = folder.iterdir()
    yield partial(read_state, path)
    yield partial(load_weights, _tiny_backbone().model, path)
    if path.suffix == ".safetensors":
        yield partial(build_backbone, path)


def _make_runs(root: Path, cached: Path | None = None) -> None:
    """A run of a second, and what is exported of it. cached: where its features are then."""
    settings = SegmentSettings(size=32, epochs=1, batch_size=4, head="linear", fusion="gate", freeze=True)
    extras, hardware = Extras(cache=Cache(cached, "") if cached else None), Hardware(accelerator="cpu", bar=False)
    segment_run(Scenes(4, 32), Scenes(2, 32, 1), _tiny_backbone(), settings, root / "runs/run", 0, hardware, extras)
    save_safetensors(load_run(root / "runs/run", "cpu"), root / "runs/exported")


def _predicted(path: Path) -> None:
    load_run(path, "cpu").predict(Scenes(1, 32).image(0))


def _make_onnx(root: Path) -> None:
    with tempfile.TemporaryDirectory() as top:
        _make_runs(Path(top))
        for name, size in (("free", None), ("fixed", (32, 32))):
            save_onnx(load_run(f"{top}/runs/run", "cpu"), root / "onnx" / name / "x.onnx", size)


def _make_packs(root: Path) -> None:
    with tempfile.TemporaryDirectory() as top:
        _make_names(Path(top))
        for split in ("images", "masks"):
            shutil.copytree(f"{top}/trees/a/{split}", f"{top}/classes/the {split}")
        for name, source in (("masks", "trees/a"), ("images", "trees/a/images"), ("labels", "classes")):
            pack(open_source(f"{top}/{source}"), root / "packs" / name)


def _settle_pack(files: Files) -> None:
    index = json.loads(files[PACK_FILE])
    for split, chunks in index["splits"].items():
        for chunk in chunks:
            data = files[f"{split}/{chunk['file']}"]
            chunk.update(bytes=len(data), sha256=sha256(data).hexdigest())
    files[PACK_FILE] = json.dumps(index).encode()


def _make_caches(root: Path) -> None:
    with tempfile.TemporaryDirectory() as top:
        _make_runs(Path(top), root / "caches")


def _use_cache(folder: Path) -> None:
    count, _ = feature_cache._whole_samples(folder)
    file = feature_cache.TensorFile(folder)
    assert len([file[i] for i in range(count)]) == len(file)


def _settle_cache(files: Files) -> None:
    lines, data = [], files[TENSORS_FILE]
    for line in files[SAMPLES_FILE].splitlines():
        start, layout, _ = json.loads(line)
        size = sum(np.dtype(kind).itemsize * prod(map(int, shape)) for kind, shape in layout)
        lines.append(json.dumps([start, layout, zlib.crc32(data[start : start + size])]) + "\n")
    files[SAMPLES_FILE] = "".join(lines).encode()


def _make_checkpoints(root: Path) -> None:
    model = _tiny_backbone().model
    state = {"epoch": 1, "global_step": 4, "state_dict": model.state_dict(), "loops": {"fit_loop": {"seen": [1, 2]}}}
    state["optimizer_states"] = [torch.optim.AdamW(model.parameters()).state_dict()]
    for step in (4, 8):
        torch.save(state, _new(root / "runs/cut" / CHECKPOINTS / f"resume-step={step}.ckpt"))
    (root / "runs/cut" / SETTINGS_FILE).write_text(json.dumps(RUN_SETTINGS))
    (root / "runs/cut" / CHOICE_FILE).write_text("[[0, 2], [1, 2]]")


def _go_on(folder: Path) -> None:
    with run_folder(folder, RUN_SETTINGS, RUN_FILE):
        remembered_choice(folder, _tiny_backbone(), Scenes(1), (), (), 1, 32)
        last_whole_checkpoint(folder)


READERS = {
    "images": Reader(_make_images, _read_images),
    "masks": Reader(_make_masks, _read_masks),
    "names": Reader(_make_names, _read_names, r"(txt|json|yaml)$"),
    "weights": Reader(_make_weights, _read_weights),
    "runs": Reader(_make_runs, lambda folder: [partial(_predicted, folder)], r"(run|config)\.json$|safetensors$"),
    "onnx": Reader(_make_onnx, lambda folder: [partial(_predicted, folder / "x.onnx")]),
    "packs": Reader(_make_packs, lambda folder: [partial(_first_samples, open_pack, folder)], "", _settle_pack),
    "caches": Reader(_make_caches, lambda folder: [partial(_use_cache, folder)], "", _settle_cache),
    "checkpoints": Reader(_make_checkpoints, lambda folder: [partial(_go_on, folder)]),
}


def _good_files(name: str) -> list[Files]:
    """The cases of a reader, made in a process of its own: what that leaves behind is in no fork."""
    with tempfile.TemporaryDirectory() as top:
        maker = FORK.Process(target=READERS[name].make, args=(Path(top),))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit(f"no good files for {name}")
        cases = [
            {str(file.relative_to(case)): file.read_bytes() for file in sorted(case.rglob("*")) if file.is_file()}
            for case in sorted(Path(top).glob("*/*"))
        ]
    return [files for files in cases if files]


def _input_of(name: str, cases: list[Files], seed: int, number: int) -> Files:
    """The files of an input."""
    rng, reader = random.Random(f"{name} {seed} {number}"), READERS[name]
    files = dict(rng.choice(cases))
    file = rng.choice([file for file in sorted(files) if re.search(reader.only, file)])
    for _ in range(rng.choice((1, 1, 1, 2))):
        files[file] = changed(files[file], file, rng)
    if rng.random() < 0.8:
        with suppress(Exception):  # there may be no sums left
            reader.settle(files)
    return files


def _write_files(files: Files, folder: Path) -> None:
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


def _outcome(name: str, folder: Path) -> str:
    """ "fine", "refused", or what was found, with the place that it comes from."""
    answer = "fine"
    for call in READERS[name].reads(folder):
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            call()
        except InputError as error:
            answer = "refused"
            if (
                "\n" in str(error) and name != "packs"
            ):  # whose names may have it, and are written out where they are shown
                return f"an error of several lines, {str(error)[:200]!r}"
            if (cause := _of_memory(error)) is not None:
                return f"out of memory, {first_line(cause)}"
        except Exception as error:
            ours = [one for one in traceback.extract_tb(error.__traceback__) if "/regard/" in one.filename]
            place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
            return f"{type(error).__name__} at {place}, {first_line(error)[:90]}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    if os.stat(SAID).st_size:
        os.truncate(SAID, 0)
        return "something on stdout (which is for a command's last line)"
    return "code of a file ran" if Path(MARKER).exists() else answer


def _of_memory(error: BaseException | None) -> BaseException | None:
    """What was refused for lack of memory; but for reading bytes that a file hasn't, which are never resident."""
    if error is None or isinstance(error, MemoryError) or re.search("allocat|nsufficient mem", first_line(error)):
        frames = traceback.extract_tb(error.__traceback__) if error else []
        return None if frames and "read(" in (frames[-1].line or "") else error
    return _of_memory(error.__cause__)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _work(name: str, cases: list[Files], seed: int, numbers: range, until: float, home: Path, to: Connection) -> None:
    """In a process of its own: read inputs, and tell of each."""
    os.chdir(home)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    begun = _peak()
    for number in numbers:
        if time.monotonic() > until:
            break
        folder = home / str(number)
        _write_files(_input_of(name, cases, seed, number), folder)
        start = time.perf_counter()
        answer, seconds = _outcome(name, folder), time.perf_counter() - start
        grown = _peak() - begun
        to.send((f"over {MOST >> 20} MB" if grown > MOST else answer, seconds, grown))
        shutil.rmtree(folder)
        if grown > MOST or Path(MARKER).exists():
            break  # what is left of it would count against the next


@dataclass
class Tally:
    """What came of the inputs of a reader. found: how often, and the folder of the first."""

    inputs: int = 0
    fine: int = 0
    refused: int = 0
    longest_s: float = 0.0
    peak_mb: int = 0
    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def row(self, name: str) -> list[str]:
        """Of the table."""
        findings = sum(count for count, _ in self.found.values())
        parts = (self.inputs, self.fine, self.refused, findings, f"{self.longest_s:.1f}", self.peak_mb)
        return [name, *map(str, parts)]


def fuzz(name: str, seed: int, first: int, seconds: float, kept: Path) -> Tally:
    """Read inputs of one reader for so many seconds."""
    cases, tally, until = _good_files(name), Tally(), time.monotonic() + seconds
    running: dict[Any, tuple[Any, Path, int]] = {}

    def start(number: int) -> None:
        home = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=MEMORY if MEMORY.is_dir() else None))
        here, there = Pipe(duplex=False)
        numbers = range(number, number + LIFE * PROCESSES, PROCESSES)
        process = FORK.Process(target=_work, args=(name, cases, seed, numbers, until, home, there))
        process.start()
        there.close()
        running[here] = process, home, number

    for process in range(PROCESSES):
        start(first + process)
    while running:
        for here in wait(list(running)):
            process, home, number = running.pop(here)
            try:
                answer, took, grown = here.recv()
                running[here] = process, home, number + PROCESSES
            except EOFError:  # it ended
                process.join()
                answer, took, grown = "", 0.0, 0
                if process.exitcode:
                    death = signal.Signals(-process.exitcode).name if process.exitcode < 0 else process.exitcode
                    answer = f"over {SECONDS} s" if death == "SIGALRM" else f"ended by {death}"
                shutil.rmtree(home)
                if time.monotonic() < until:
                    start(number + PROCESSES * bool(answer))
            if not answer:
                continue
            tally.inputs += 1
            tally.fine += answer == "fine"
            tally.refused += answer == "refused"
            tally.longest_s, tally.peak_mb = max(tally.longest_s, took), max(tally.peak_mb, grown >> 20)
            if answer not in ("fine", "refused"):
                folder, kind = kept / f"{name}-{seed}-{number}", answer.partition(",")[0]
                count, example = tally.found.get(kind, (0, str(folder)))
                tally.found[kind] = count + 1, example
                if not count:  # one of each kind is enough to mend it
                    print(f"{folder}: {answer}", flush=True)
                    _write_files(_input_of(name, cases, seed, number), folder)
    return tally


def main() -> None:
    """All readers in turn, each for its share of the time."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(READERS), metavar="NAME,...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--replay", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.replay:
        folder = Path(shutil.copytree(arguments.replay, tempfile.mkdtemp(), dirs_exist_ok=True))
        for call in READERS[arguments.only[0]].reads(folder):
            try:
                print(call, call())
            except Exception:
                traceback.print_exc()
        return
    _tiny_backbone()  # before the processes are forked
    share, tallies = 60 * arguments.minutes / len(arguments.only), {}
    for name in arguments.only:
        tallies[name] = fuzz(name, arguments.seed, arguments.first, share, arguments.findings.resolve())
    print(table(HEAD, [tally.row(name) for name, tally in tallies.items()]))
    if arguments.out:
        config = {"seed": arguments.seed, "first": arguments.first, "minutes": arguments.minutes}
        results = {name: asdict(tally) for name, tally in tallies.items()}
        write(arguments.out, ["pillow", "safetensors", "onnxruntime"], config, results)
    raise SystemExit(any(tally.found for tally in tallies.values()))


if __name__ == "__main__":
    main()
