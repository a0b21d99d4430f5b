"""The command that hands a trained segmentation to others: export."""

from pathlib import Path
from typing import Literal

from regard.errors import InputError
from regard.say import say

Format = Literal["onnx", "safetensors", "hub"]


def export(
    run: str,
    format: Format,
    out: str,
    push: str | None = None,
    opset: int = 18,
    height: int | None = None,
    width: int | None = None,
) -> str:
    """Make a trained segmentation fit for other programs: one ONNX file, safetensors, or a Hugging Face hub folder.

    Args:
        run: Folder of `regard segment`, or a cell of `regard compare`.
        format: `onnx` takes RGB images, float32 0..255, any size, and is checked against torch before it is kept;
            `safetensors` is weights and config.json; `hub` has a model card too.
        out: The file to make, ending in .onnx, or the folder.
        push: OWNER/NAME on the Hugging Face hub to upload to, with format hub; a new one is private. The token is that
            of HF_TOKEN, or of `hf auth login`.
        opset: Version of the ONNX operators, 18 to 23.
        height: Fix the height of images in the ONNX file, pixels; with width.
        width: Fix the width.
    """
    if push is not None and format != "hub":
        raise InputError(f"--push goes with --format hub, not {format}")
    if (height, width, opset) != (None, None, 18) and format != "onnx":
        raise InputError(f"--height, --width and --opset go with --format onnx, not {format}")
    if (height is None) != (width is None):
        raise InputError("--height and --width go together")
    from regard.runs.export import check_push, save_onnx, save_pretrained, save_safetensors
    from regard.runs.export import push as upload
    from regard.runs.run import load_run

    if push is not None:
        check_push(push)
    loaded = load_run(run, "cpu")
    if format == "safetensors":
        save_safetensors(loaded, out)
        return f"weights and config.json in {out}"
    if format == "hub":
        save_pretrained(loaded, out)
        if push is None:
            return f"weights, config.json and model card in {out}"
        return f"{out} pushed to {upload(Path(out), push)}"
    say("exporting, then comparing with torch at several sizes: this takes a minute or more")
    fixed = None if height is None or width is None else (height, width)
    reason = save_onnx(loaded, out, fixed, opset)
    if reason is None:
        return f"ONNX model for images of any size in {out}"
    rows, columns = fixed or (loaded.size, loaded.size)
    return f"ONNX model in {out}, fixed to images of {rows} x {columns} pixels: {reason}"
