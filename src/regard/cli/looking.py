"""Commands that look into a backbone: attention."""

from typing import Any

from regard.cli.common import console, outputs
from regard.errors import InputError


def attention(
    backbone: str,
    images: list[str],
    out: str = "runs/attention",
    size: int = 224,
    weights: str | None = None,
    pretrained: bool = False,
    backbone_options: dict[str, Any] | None = None,
) -> str:
    """Draw what each attention head looks at: one mosaic per image, blocks down and heads across.

    Args:
        backbone: A timm ViT or Swin, or what `regard pretrain` made.
        images: Files, or folders of images at any depth.
        out: Folder for the pictures.
        size: Short side that images are brought to, in pixels.
        weights: A checkpoint file for the backbone: DINO or timm.
        pretrained: timm's published weights for the backbone.
        backbone_options: Passed to timm, such as {"img_size": 64, "patch_size": 8}.
    """
    import numpy as np
    import torch
    from PIL import Image
    from rich.progress import track

    from regard.attention.draw import mosaic
    from regard.backbones import build_backbone, normalize
    from regard.data.augment import resize, short_side
    from regard.data.datasets import read_image

    model = build_backbone(backbone, pretrained, weights, **(backbone_options or {})).eval()
    if not model.heads:
        raise InputError(f"{model.name} has no attention maps: use a ViT or a Swin")
    files = outputs(images, out)
    for file, path in track(files.items(), "drawing", transient=True, console=console()):
        pixels = read_image(file)
        pixels = resize(pixels, (0, 0, *pixels.shape[:2]), short_side(pixels.shape[:2], size))
        batch = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).unsqueeze(0)
        with torch.inference_mode():
            maps = model(normalize(batch), attention=True).attention
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mosaic(pixels, [m.weights[0].numpy() for m in maps])).save(path)
    return f"{len(files)} mosaics of {maps[0].kind} attention in {out}: levels down, heads across"
