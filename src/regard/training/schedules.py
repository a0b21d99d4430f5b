"""Schedules of the published recipes, as pure functions of the step."""

import math


def warmup_cosine(step: int, total: int, warmup: int, base: float, final: float) -> float:
    """Barlow Twins' schedule: linear warm-up from 0 to `base`, then a half cosine down to `final` at `total`.

    As in the authors' `adjust_learning_rate`: the cosine's clock starts at the end of the warm-up.
    """
    if step < warmup:
        return base * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    q = 0.5 * (1 + math.cos(math.pi * progress))
    return base * q + final * (1 - q)


def dino_warmup_cosine(step: int, total: int, warmup: int, base: float, final: float) -> float:
    """DINO's schedule (`cosine_scheduler`): like `warmup_cosine`, but the warm-up reaches `base` one step earlier."""
    if step < warmup:
        return base * step / max(1, warmup - 1)
    return cosine(step - warmup, total - warmup, base, final)


def cosine(step: int, total: int, base: float, final: float) -> float:
    """Half a cosine from `base` at step 0 towards `final` at step `total`: DINO's teacher momentum and weight decay."""
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * step / max(1, total)))


def teacher_temperature(epoch: int, start: float, end: float, warmup_epochs: int) -> float:
    """DINO's teacher temperature: evenly spaced from `start` to `end` over the warm-up epochs, both included."""
    if epoch >= warmup_epochs:
        return end
    return start + (end - start) * epoch / max(1, warmup_epochs - 1)


def rate_factor(step: int, total: int, warmup: int, schedule: str, power: float = 0.9) -> float:
    """Of the peak rate, how much step `step` of `total` gets: linear over `warmup` steps, times the decay to zero."""
    done = min(step, total - 1) / total
    decay = (1 - done) ** power if schedule == "poly" else 0.5 * (1 + math.cos(math.pi * done))
    return min(1.0, (step + 1) / warmup) * decay
