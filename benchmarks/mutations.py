"""Changes files at random: their bytes, and what is in them with the lengths and sums that they should then have."""

import copy
import io
import json
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

MARKER = "ran-code"  # the file that a hostile one would make where its code ran
NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 10**9, 10**30)
DEEP = "<deep>"  # stands for brackets within brackets
VALUES = [*NUMBERS, None, True, 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), "", "\0", "1e9", "../../x"]
VALUES += ["x" * 99_999, "\ud800", "/etc/passwd", DEEP, [], {}, [[]], [0] * 9999, [-1, -1], {"a": None}, "|O", "<U8"]
WORDS = ["&a [*a, *a]", "*a", "<<: *a", f"!!python/object/apply:os.system [touch {MARKER}]", "..", "/etc/passwd", "\0"]
WORDS += ["\ufeff", "\udcff", "a" * 99_999, "[" * 9999, "{a: " * 999, "9" * 5000, "1e999", ".nan", ":", "#", "\t", "~"]
CALLED = b"X\x0e\0\0\0touch %s\x85R0" % MARKER.encode()
CALLS = [b"c%s\n%s" % (one, CALLED) for one in (b"os\nsystem", b"posix\nsystem", b"subprocess\ngetoutput")]
CALLS += [b"\x8c\x02os\x8c\x06system\x93" + CALLED]
GLOBALS = [b"os\nsystem", b"builtins\neval", b"builtins\nbytearray", b"builtins\nset", b"collections\nCounter"]
GLOBALS += [b"torch\nSize", b"torch\nHalfStorage", b"torch\nTensor", b"numpy\nndarray", b"argparse\nNamespace"]
GLOBALS += [b"torch._utils\n_rebuild_" + one for one in (b"parameter", b"sparse_tensor", b"meta_tensor_no_storage")]
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fdAT", b"iCCP", b"zTXt", b"eXIf")


def in_bytes(data: bytes, rng: Random) -> bytes:
    """A few places, mostly near the beginning or the end, which decide most."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        near = min(len(made), rng.choice((64, 256, len(made))))
        at = rng.randrange(near + 1) + (len(made) - near) * (rng.random() < 0.3)
        end = at + min(rng.choice((1, 2, 4, 16, 64, 1024, 1 << 16)), len(made) - at)
        size, to = rng.choice((1, 2, 4, 8)), rng.randrange(len(made) + 1)
        match rng.randrange(7):
            case 0 if end > at:
                made[at] ^= 1 << rng.randrange(8)
            case 1:
                made[at:end] = rng.randbytes(end - at)
            case 2:
                del made[at : rng.choice((end, end, end, len(made)))]
            case 3:
                made[at:at] = rng.choice((made[at:end], rng.randbytes(end - at)))
            case 4:
                made[to : to + end - at] = made[at:end]
            case _:
                number = rng.choice(NUMBERS) % 256**size
                made[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
    return bytes(made)


def in_value(value: Any, rng: Random) -> Any:
    """A few places of nested lists and dicts: dropped, renamed, swapped, or of another value or type."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        places: list[tuple[Any, Any]] = [(root, 0)]
        for within, key in places:  # which grows meanwhile
            inner = within[key] if len(places) < 1000 else None
            keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
            places += [(inner, one) for one in keys]
        (within, key), (elsewhere, other) = rng.choice(places), rng.choice(places)
        match rng.randrange(6):
            case 0 if within is not root:
                del within[key]
            case 1 if isinstance(within, dict):
                within[rng.choice((f"{key}x", "", "\0", "depth", str(other)))] = within.pop(key)
            case 2:
                within[key] = copy.deepcopy(elsewhere[other])
            case 3 if isinstance(within[key], int | float):
                within[key] = rng.choice((-1, 1000, 0.5, 10**9)) * within[key]
            case _:
                within[key] = copy.deepcopy(rng.choice(VALUES))
    return root[0]


def in_json(data: bytes, rng: Random) -> bytes:
    """Values."""
    text = json.dumps(in_value(json.loads(data), rng))
    return text.replace(json.dumps(DEEP), "[" * 50_000 + "]" * 50_000).encode()


def in_text(data: bytes, rng: Random) -> bytes:
    """Words, lines, and lines of JSON."""
    lines = data.decode().splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(lines))
        words = re.split(r"([ ,:/]+)", lines[at])
        words[rng.randrange(len(words))] = rng.choice((*WORDS, *map(str, NUMBERS)))
        is_json = lines[at].startswith("[")
        new = in_json(lines[at].encode(), rng).decode() + "\n" if is_json else "".join(words)
        lines[at] = rng.choice((new, new, new, lines[at] * 2, lines[at][:99] * 999, f"{rng.choice(WORDS)}\n", ""))
    return "".join(lines).encode("utf-8", "surrogateescape")


def in_png(data: bytes, rng: Random) -> bytes:
    """Chunks, or what is in one."""
    chunks, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + size]])
        at += 12 + size
    one = rng.choice(chunks)
    match rng.randrange(5):
        case 0:
            chunks.insert(rng.randrange(len(chunks) + 1), list(one))
        case 1:
            chunks.remove(one)
        case 2:
            one[0] = rng.choice(PNG_CHUNKS)
        case 3 if one[0] == b"IDAT":
            one[1] = zlib.compress(in_bytes(zlib.decompress(one[1]), rng))
        case _:
            one[1] = in_bytes(one[1], rng)
    sums = [struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks]
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + end for (kind, body), end in zip(chunks, sums, strict=True)
    )


def in_pickle(data: bytes, rng: Random) -> bytes:
    """Opcodes: another global, another number, a call of code, some left out or repeated."""
    places = [(op.name, at) for op, _, at in pickletools.genops(data) if at is not None]
    at, end = sorted(at for _, at in rng.sample(places, 2))
    numbers = [at for name, at in places if name == "BININT1"]
    names = list(re.finditer(rb"(?<=c)[\w.]+\n\w+(?=\n)", data))
    match rng.randrange(6):
        case 0:
            return data[:at] + rng.choice(CALLS) + data[at:]
        case 1 if names:
            begin, behind = rng.choice(names).span()
            return data[:begin] + rng.choice(GLOBALS) + data[behind:]
        case 2 if numbers:
            at, number = rng.choice(numbers), rng.choice(NUMBERS)
            return data[:at] + b"\x8a\x10" + number.to_bytes(16, "little", signed=True) + data[at + 2 :]
        case 3:
            return data[:at] + data[end:]
        case 4:
            return data[:end] + data[at:]
        case _:
            return in_bytes(data, rng)


def in_zip(data: bytes, rng: Random) -> bytes:
    """Members of a file of torch.save, mostly its pickle."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [[one.filename, file.read(one)] for one in file.infolist()]
    one = rng.choice(members)
    match rng.randrange(8):
        case 0:
            members.append([rng.choice(members)[0], one[1]])
        case 1:
            members.remove(one)
        case 2:
            one[0] = rng.choice((one[0] + "x", "../x", "/tmp/x", "", "x" * 999))
        case 3:
            one[1] = in_bytes(one[1], rng)
        case _:
            one = next(one for one in members if one[0].endswith("data.pkl"))
            one[1] = in_pickle(one[1], rng)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED) as file:
        for name, body in members:
            file.writestr(name, body)
    return packed.getvalue()


def in_header(data: bytes, rng: Random) -> bytes:
    """What a safetensors file says of its tensors, or our description in it."""
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size]
    header = json.loads(text)
    if "regard" in (about := header.get("__metadata__", {})) and rng.random() < 0.7:
        about["regard"] = in_json(about["regard"].encode(), rng).decode()
        text = json.dumps(header).encode()
    else:
        text = in_json(text, rng)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def in_state(data: bytes, rng: Random) -> bytes:
    """Tensors of weights: dropped, renamed, swapped, of another shape, type or content."""
    is_zip = data.startswith(b"PK")
    found = torch.load(io.BytesIO(data), weights_only=True) if is_zip else load(data)
    state = found.get("state_dict", found)
    for _ in range(rng.choice((1, 1, 2, 6))):
        key, other = rng.choice(sorted(state)), rng.choice(sorted(state))
        value = state.pop(key)
        flat = value.flatten()
        shapes = (value[None], flat, flat[:0], value.mT if value.ndim > 1 else flat, torch.cat([flat] * 3))
        fills = (value * float("nan"), value * float("inf"), value * 0, value + 1e38, -value)
        kinds = [value.to(kind) for kind in (torch.half, torch.long, torch.bool, torch.double, torch.complex64)]
        name = rng.choice((key, key, key, other, f"module.{key}", f"{key}x", key.replace(".", "_"), "", "head.weight"))
        if rng.random() < 0.9:
            state[name] = rng.choice((value, *rng.choice((shapes, fills, kinds)))).contiguous().clone()
    if not is_zip:
        return save(state, json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__"))
    torch.save(found, saved := io.BytesIO())
    return saved.getvalue()


BY_SUFFIX: dict[str, tuple[Callable[[bytes, Random], bytes], ...]] = {
    ".json": (in_json, in_json, in_text),
    ".yaml": (in_text, in_text),
    ".txt": (in_text, in_text),
    ".png": (in_png,),
    ".pth": (in_zip, in_state),
    ".ckpt": (in_zip,),
    ".pt": (in_pickle,),
    ".safetensors": (in_header, in_state),
}


def changed(data: bytes, file: str, rng: Random) -> bytes:
    """A file of this name, changed as its kind can be, or anywhere."""
    try:
        return rng.choice((*BY_SUFFIX.get(Path(file).suffix, ()), in_bytes))(data, rng)
    except Exception:  # what was changed before may be nothing that can be taken apart
        return in_bytes(data, rng)
