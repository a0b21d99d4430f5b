"""What does it cost to read images out of a pack, beside single files, and beside LitData over the same chunks?

500x375 JPEGs of quality 90 (as in benchmarks/views.py), some numbers of times, in one process without loading workers.
Each case reads all of them once, in the shuffled order of an epoch, and gives up the bytes undecoded: `single files` is
a folder; `pack` the same images packed, on a disk; `over http` that pack behind a server on this machine, fetched and
kept (`first epoch`: the cache was empty), then out of the cache; `litdata` its own StreamingDataset over our chunks.
`decoding` is what each of those bytes costs next. The files are in the system's cache in all cases.

    python benchmarks/streaming.py --out results/streaming.json
"""

import itertools
import os
import re
import shutil
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from side_by_side import clock, ratios, show, spread, table, write
from views import jpegs

from regard.data.datasets.base import Chunked
from regard.data.loading.order import EpochSampler
from regard.data.packs.packing import pack
from regard.data.reading import decode_image
from regard.data.source import open_source

BASELINE = "single files"


class Ranges(SimpleHTTPRequestHandler):
    """Serves the bytes that are asked for, as every object store does; Python's own server has whole files alone."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A file, or a part of it."""
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        size, asked = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        first, last = (int(asked[1]), min(int(asked[2] or size), size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        with path.open("rb") as file:
            os.sendfile(self.connection.fileno(), file.fileno(), first, last - first + 1)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def serve(folder: str, port: Any) -> None:
    """In a process of its own, until that is ended."""
    os.chdir(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    port.send(server.server_port)
    server.serve_forever()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(str(folder), there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def reader(data: str) -> Callable[[], None]:
    """Reads the bytes of each image once; each call is another epoch."""
    images: Any = open_source(data).split("train")
    epochs = itertools.count()

    def read() -> None:
        chunked = images if isinstance(images, Chunked) else None
        for _, index in EpochSampler(len(images), 0, epoch=next(epochs), chunked=chunked):
            images.encoded(index)

    return read


def main() -> None:
    """All cases in turn."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--chunk_mb", type=int, default=16)
    arguments = parser.parse_args()
    count = arguments.images
    with tempfile.TemporaryDirectory() as top:
        os.environ["REGARD_CACHE"], work = f"{top}/cache", Path(top)
        (work / "files").mkdir()
        source, origin = jpegs(64)
        for i in range(count):  # comments make each file another one, and so each chunk
            file, comment = source.files[i % len(source.files)], b"%08d" % i
            (work / f"files/{i:06}.jpg").write_bytes(file[:2] + b"\xff\xfe\x00\x0a" + comment + file[2:])
        packing = time.perf_counter()
        pack(open_source(str(work / "files")), work / "pack", arguments.chunk_mb)
        packing = time.perf_counter() - packing

        with served(work) as url:

            def first_epoch() -> None:
                shutil.rmtree(work / "cache/chunks", ignore_errors=True)
                reader(f"{url}/pack")()  # opened anew, as chunks that are mapped would not be fetched

            cases = {
                BASELINE: reader(str(work / "files")),
                "pack": reader(str(work / "pack")),
                "over http, first epoch": first_epoch,
                "over http, kept": lambda: reader(f"{url}/pack")(),
                "litdata": by_litdata(work / "pack/train", count),
                "decoding": lambda: [decode_image(source.files[i % len(source.files)], "") for i in range(count)],
            }
            # Not turned round as in other benchmarks: what is kept is what the case before it has fetched.
            seconds: dict[str, list[float]] = {name: [] for name in cases}
            for _ in range(arguments.rounds):
                for name, case in cases.items():
                    seconds[name].append(clock(case))
    results: dict[str, Any] = {
        name: {"seconds_an_image": spread([value / count for value in values]),
               "times_single_files": ratios(seconds[BASELINE], values)}
        for name, values in seconds.items()
    }  # fmt: skip
    config = {"images": count, "source": origin, "chunk_mb": arguments.chunk_mb}
    results["packing"] = {"images_a_second": count / packing}
    write(arguments.out, ["litdata", "fsspec", "simplejpeg"], config, results)
    rows = [
        [name, show(results[name]["seconds_an_image"], 1e6), show(results[name]["times_single_files"], digits=2)]
        for name in seconds
    ]
    print(table(["read from", "µs an image", "times as fast as single files"], rows))
    print(f"packed at {count / packing:.0f} images a second")


def by_litdata(chunks: Path, count: int) -> Callable[[], None]:
    """LitData's own reader, shuffled, likewise without workers."""
    from litdata import StreamingDataset

    def read() -> None:
        dataset = StreamingDataset(str(chunks), shuffle=True)
        assert sum(len(sample["image"]) > 0 for sample in dataset) == count

    return read


if __name__ == "__main__":
    main()
