"""How long a trained segmentation takes for an image."""

import time

import numpy as np
import torch

from regard.backbones import device_of, normalize
from regard.runs.run import Run


@torch.inference_mode()
def milliseconds_per_image(
    run: Run, size: tuple[int, int], batch: int = 8, repeats: int = 7
) -> tuple[float, float, float] | None:
    """Median, shortest and longest time of a forward pass over a batch of (height, width) images, per image, after one
    to warm up.

    In float32. None where the batch does not fit into the memory of the GPU.
    """
    device = device_of(run.model)
    images = normalize(torch.randint(0, 256, (batch, run.model.planes, *size), dtype=torch.uint8, device=device))
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        try:
            run.model(images)
        except torch.OutOfMemoryError:
            return None
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    middle, low, high = 1000 / batch * np.quantile(times[1:], (0.5, 0, 1))
    return float(middle), float(low), float(high)
