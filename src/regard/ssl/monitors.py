"""What is watched while a pre-training runs: signs of collapse, the views it learns from, and its cross-correlation.

A method that compares views of one image can win by saying the same of every image, or the same in every dimension.
Its loss need not show it: DINO's is lowest when all images have one prototype.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from regard.errors import TrainingStopped
from regard.ssl.barlow_twins import standardize
from regard.training.logs import keep_picture, picture_due

# Thresholds, each between what healthy and what broken runs gave: preset tiny, 512 scenes, batch 32, 48 to 96 steps.
# Broken: a teacher at 0.1, 0.2 or 1.0 (healthy: 0.04), no centring, a rate 50 times too high. (What lambda_ = 0 breaks
# does not show in so few steps.)
MIN_SPREAD = 0.05  # no run had less than 0.14, broken or not; 0.05 is a cosine of 0.999 to the mean embedding
MIN_RANK = 3.0  # healthy: 6.3 and more; Barlow Twins at 50 times its rate, on a Swin: 3.0 falling to 1.9
MIN_RANK_SHARE = 0.15  # of the rank that a batch can have, where that is less: 16 images have 4.1 where 32 have 5.3
MIN_INFORMATION = 0.05  # nats short of ln K. Healthy: 0.32 and more. Teacher at 0.1: 0.03 after 32 steps; at 1.0: 0.004
# Nats of information, together with a fall to less than half. A 4-block ViT on drawn images: teacher at 0.03, too warm
# for what their crops share, 0.54 falling to 0.02 in 50 steps, still 0.6 short of ln K; at 0.01, 0.5 to 1.4 throughout.
FADING, FADED = 0.3, 0.5
MIN_PROTOTYPES = math.log(1.5)  # nats. Healthy: 4.4 and more. Without centring: 0.3 after 40 steps. Two images: ln 2
GRACE = 0.1  # share of the steps that is not judged: a random network may give any reading, and a rate warms up

MOST_ROWS = 256  # of a batch are read: singular values cost rows^2 x dim, on one slow core 0.24 s for 256 x 8192
CELL, GAP = 128, 4  # pixels: side of a view in the picture of them, and white between two


def embedding_spread(z: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """How far apart embeddings point: 1 when spread evenly over the sphere, 0 when all are alike.

    Mean over dimensions of the (biased) standard deviation of z / |z|, times sqrt(dim): SimSiam (Chen & He 2021,
    https://arxiv.org/abs/2011.10566), section 4.1 and figure 2.
    """
    return F.normalize(z.float(), dim=1).std(dim=0, correction=0).mean() * math.sqrt(z.shape[1])


def effective_rank(z: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """In how many directions embeddings vary, between 1 and min(batch - 1, dim): exp of the entropy of the singular
    values, as shares of their sum (Roy & Vetterli 2007; RankMe, Garrido et al. 2023, https://arxiv.org/abs/2210.02885).

    Departure from RankMe: of the centred matrix. An offset that all images share says nothing of them, and Barlow
    Twins' loss does not see it; uncentred, healthy and collapsed runs overlap. NaN where z is not finite.
    """
    z = z.float()
    if not bool(torch.isfinite(z).all()):
        return z.new_tensor(math.nan)  # the decomposition would raise
    values = torch.linalg.svdvals(z - z.mean(dim=0))
    values = values * (values > 1e-6 * z.norm())  # rounding errors of a constant are no directions
    return torch.special.entr(values / values.sum().clamp(min=1e-30)).sum().exp()


def teacher_entropy(
    logits: Float[Tensor, "rows prototypes"], center: Float[Tensor, "1 prototypes"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(Mean entropy of a DINO teacher's outputs, entropy of its mean output), nats, of ln(prototypes) at most.

    Their difference is the mutual information between image and prototype. It is 0 in both collapses (DINO, section
    5.3 and figure 7): to the uniform output, where both are ln(prototypes), and to one prototype, where both are 0.
    """
    outputs = F.softmax((logits.float() - center) / temperature, dim=-1)
    return torch.special.entr(outputs).sum(dim=-1).mean(), torch.special.entr(outputs.mean(dim=0)).sum()


def cross_correlation(
    z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"], most: int = 256
) -> Float[Tensor, "kept kept"]:
    """Correlation over the batch of each dimension of one view with each of the other, -1..1; the first `most`.

    The c of Barlow Twins' equation 2 and figure 1.
    """
    with torch.autocast(z1.device.type, enabled=False):
        return standardize(z1[:, :most].float()).T @ standardize(z2[:, :most].float()) / len(z1)


def information(reading: Mapping[str, float | int]) -> float:
    """Nats that a DINO teacher's output tells of its image: see `teacher_entropy`. 0 for other methods."""
    return reading.get("mean_teacher_entropy", 0.0) - reading.get("teacher_entropy", 0.0)


def collapse(reading: Mapping[str, float], directions: int, most: float = 0.0) -> str | None:
    """The kind of collapse that one reading of `CollapseMonitor` shows, a key of `REMEDIES`, if any.

    directions: the highest rank that the embeddings of the batch can have.
    most:       the highest information of a reading so far, nats.
    """
    if reading["spread"] < MIN_SPREAD:
        return "constant"
    if reading["effective_rank"] < min(MIN_RANK, MIN_RANK_SHARE * directions):
        return "narrow"
    if "ln_K" in reading and reading["mean_teacher_entropy"] < MIN_PROTOTYPES:
        return "one prototype"
    if "ln_K" in reading and reading["ln_K"] - reading["teacher_entropy"] < MIN_INFORMATION:
        return "uniform"
    if information(reading) < min(FADING, FADED * most):
        return "fading"
    return None


# Kind -> what the reading is and means, then what to do: for Barlow Twins, for DINO.
REMEDIES = {
    "constant": (
        "all images have nearly the same embedding: spread {spread:.3f}, where 1 is even and 0 is one point",
        "lower lr, or lengthen the warm-up",
        "lower lr, lengthen the warm-up, or raise momentum",
    ),
    "narrow": (
        "embeddings vary in few directions: effective rank {effective_rank:.1f}",
        "raise lambda_ (0.0051 as published), lower lr, or take a larger batch",
        "lower lr, or take a larger batch",
    ),
    "one prototype": (
        "the teacher puts all images on one prototype: the entropy of its mean output is {mean_teacher_entropy:.3f} "
        "nats of ln K = {ln_K:.2f}",
        "",
        "see that the center follows the teacher's logits, raise teacher_temp (0.04 as published), or lower lr",
    ),
    "uniform": (
        "the teacher gives every prototype the same share, whatever the image: the mean entropy of its outputs is "
        "{teacher_entropy:.3f} nats of ln K = {ln_K:.3f}",
        "",
        "lower teacher_temp (0.04 as published) or warm it up from there; failing that, lower lr",
    ),
    # DINO's outputs grow only along what crops of an image share to more than teacher_temp / 0.1, as a correlation:
    # tests/ssl/test_dino.py. What they share to less fades, and the loss hardly moves meanwhile.
    "fading": (
        "the teacher tells less of its images than it did: {information:.2f} nats, once {most:.2f}",
        "",
        "lower teacher_temp, or let crops share more of an image: larger crop_scale and local_scale, weaker colours",
    ),
}


class CollapseMonitor(L.Callback):
    """Reads the embeddings now and then, logs what it finds, and says so when a training collapses.

    A collapse is `patience` readings in a row past a threshold, after the first tenth of the steps; each kind is said
    once, in one line. The readings of all processes are averaged, so that all come to one decision. For methods whose
    `training_step` returns "embeddings": see `Pretraining`.

    say:         is given the line, on rank zero.
    on_collapse: "stop" raises TrainingStopped with it instead, on all ranks.
    every:       optimizer steps between readings. Loggers get those that fall on the Trainer's `log_every_n_steps`.
    points:      all readings: {"step", "spread", "effective_rank"}, and for DINO "teacher_entropy",
                 "mean_teacher_entropy", "ln_K".
    """

    def __init__(
        self,
        say: Callable[[str], None],
        on_collapse: Literal["warn", "stop"] = "warn",
        every: int = 25,
        patience: int = 3,
    ) -> None:
        self.say, self.on_collapse, self.every, self.patience = say, on_collapse, every, patience
        self.points: list[dict[str, float]] = []
        self._kind, self._in_a_row, self._said = "", 0, set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Read when it is time; once per optimizer step, also where that has several parts."""
        step = trainer.global_step
        if step == 0 or step % self.every or (self.points and self.points[-1]["step"] == step):
            return
        outputs = cast(dict[str, Any], outputs)
        z = outputs["embeddings"][0][:MOST_ROWS]
        found = read(z, outputs.get("teacher"))
        means = trainer.strategy.reduce(torch.stack(list(found.values())), reduce_op="mean").tolist()
        reading = dict(zip(found, means, strict=True))
        if not all(map(math.isfinite, means)):  # `FiniteLoss` says so
            return
        pl_module.log_dict(reading)
        self.points.append({"step": step, **reading})
        if step > GRACE * trainer.estimated_stepping_batches:
            self._judge(trainer, reading, min(len(z) - 1, z.shape[1]))

    def _judge(self, trainer, reading: dict[str, float], directions: int) -> None:
        most = max(map(information, self.points))
        kind = collapse(reading, directions, most) or ""
        self._in_a_row = self._in_a_row + 1 if kind == self._kind else 1
        self._kind = kind
        if not kind or self._in_a_row < self.patience or kind in self._said:
            return
        self._said.add(kind)
        meaning, *remedies = REMEDIES[kind]
        meaning = meaning.format(**reading, information=information(reading), most=most)
        line = (
            f"collapse at step {trainer.global_step}: {meaning}, in {self.patience} readings in a "
            f"row; {remedies['ln_K' in reading]}"
        )
        if self.on_collapse == "stop":
            raise TrainingStopped(line)
        if trainer.is_global_zero:
            self.say(line)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"points": self.points, "kind": self._kind, "in_a_row": self._in_a_row, "said": sorted(self._said)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.points, self._said = state_dict["points"], set(state_dict["said"])
        self._kind, self._in_a_row = state_dict["kind"], state_dict["in_a_row"]


def read(z: Float[Tensor, "batch dim"], teacher: Mapping[str, Any] | None) -> dict[str, Float[Tensor, ""]]:
    """One reading, of one process: see `CollapseMonitor.points`."""
    found = {"spread": embedding_spread(z), "effective_rank": effective_rank(z)}
    if teacher is not None:
        each, mean = teacher_entropy(teacher["logits"], teacher["center"], teacher["temperature"])
        most = torch.full_like(each, math.log(teacher["logits"].shape[1]))
        found |= {"teacher_entropy": each, "mean_teacher_entropy": mean, "ln_K": most}
    return found


class Pictures(L.Callback):
    """Saves pictures into `folder`, on rank zero, and sends them to TensorBoard and Weights & Biases where in use.

    views.png:                     at the start, the views of the first eight images: images across, views down.
    cross-correlation-epoch-N.png: every `epochs` epochs and after the last, of the epoch's last batch; of methods
                                   that correlate.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder, self.epochs = folder, epochs

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """What the training sees."""
        if trainer.is_global_zero and trainer.current_epoch == batch_idx == 0:
            keep_picture(trainer, self.folder, "views", "", grid([view[:8] for view in batch if view.ndim == 4]))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """What came of it."""
        outputs, epoch = cast(dict[str, Any], outputs), trainer.current_epoch + 1
        if trainer.is_last_batch and picture_due(trainer, self.epochs) and pl_module.correlates:
            z1, z2 = outputs["embeddings"]
            picture = correlation_map(cross_correlation(z1, z2).cpu().numpy(), len(z1), epoch)
            keep_picture(trainer, self.folder, "cross-correlation", f"-epoch-{epoch}", picture)


def grid(views: Sequence[UInt8[Tensor, "images 3 _ _"]]) -> UInt8[np.ndarray, "height width 3"]:
    """Images across, views down, white between; views of any size (RGB, 0..255), each brought to CELL x CELL."""
    pitch = CELL + GAP
    canvas = np.full((pitch * len(views) - GAP, pitch * len(views[0]) - GAP, 3), 255, dtype=np.uint8)
    for row, images in enumerate(views):
        for column, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
            how = cv2.INTER_AREA if len(image) > CELL else cv2.INTER_CUBIC
            top, left = row * pitch, column * pitch
            canvas[top : top + CELL, left : left + CELL] = cv2.resize(image, (CELL, CELL), interpolation=how)
    return canvas


def correlation_map(c: Float[np.ndarray, "dim dim"], batch: int, epoch: int) -> UInt8[np.ndarray, "height width 3"]:
    """Blue for -1, white for 0, red for 1; the title has the mean of the diagonal and the size of the rest.

    batch: of how many images; what is unrelated still correlates by about 1 / sqrt(batch) in them, by chance.
    """
    diagonal = c.diagonal()
    rest = math.sqrt(max(0.0, float((c**2).sum() - (diagonal**2).sum())) / max(1, c.size - len(c)))
    # Small, so that its words can be read where the picture is: 360 pixels wide in a report. Not pyplot's, which are
    # global.
    figure = Figure(figsize=(3.6, 3.5), dpi=187, layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(c, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_title(
        f"Cross-correlation, epoch {epoch}, {batch} images\n"
        f"diagonal: mean {diagonal.mean():.2f}; the rest: RMS {rest:.2f}\n"
        f"(by chance: {batch**-0.5:.2f})",
        fontsize=9,
    )
    axes.set_xlabel("dimension of view 2's embedding", fontsize=9)
    axes.set_ylabel("dimension of view 1's embedding", fontsize=9)
    axes.tick_params(labelsize=9)
    figure.colorbar(drawn, ticks=[-1, 0, 1], fraction=0.046, pad=0.03)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
