"""Scores of the heads of a finished run: means of what `regard score` says, and cheap."""

import time

import numpy as np
import pytest
import torch

from models import TINY_VIT, VIT
from regard.backbones import build_backbone
from regard.data.datasets.scenes import Scenes
from regard.runs.run import Run
from regard.scoring.cell_scores import head_scores
from regard.scoring.chosen import Chosen
from regard.scoring.protocol import choose_protocol
from regard.scoring.score import score_heads
from regard.segmentation.model import SegmentationModel
from regard.settings import Scoring
from untrained import description, untrained_segmentation


def scores_of(run: Run, data, images: int = 64):
    found = head_scores(run.model.backbone, data, run.model.head.levels, run.size, images)
    return found and found.means


def run_of(head: str, sharpness: float = 20.0, size: int = 32, **head_options) -> Run:
    """A run of a tiny ViT whose random attention is the farther from even, the larger the sharpness."""
    torch.manual_seed(0)
    vit = build_backbone(VIT, **TINY_VIT)
    for block in vit.model.blocks:
        block.attn.qkv.weight.data *= sharpness
    model = SegmentationModel(vit, len(Scenes.classes), "none", head, head_options=head_options)
    return Run(model, description(model, size=size, head=head, head_options=head_options))


def test_scores_are_means_over_the_heads_that_the_decoder_could_read() -> None:
    """Of one level that a head reads, and of four, against the tables of `regard score`."""
    for head, options, blocks in (("fcn", {"width": 8}, (3,)), ("linear", {}, (0, 1, 2, 3))):
        run, data = run_of(head, **options), Scenes(12, size=48)
        backbone, chosen = run.model.backbone, Chosen(data, 5)
        protocol = choose_protocol(Scoring(size=32, blocks=blocks), backbone, chosen.classes)
        table = score_heads({"given": backbone}, chosen, protocol)["given"].blocks
        rows = [row for block in table for row in block.heads if row.head != "mean"]
        assert len(rows) == 3 * len(blocks)
        expected = {
            "information": np.mean([row.information for row in rows]),
            "beyond_position": np.mean([row.information_beyond_position for row in rows]),
            "entropy": np.mean([row.entropy_share for row in rows]),
            "jaccard": np.mean([row.jaccard for row in rows]),
        }
        assert scores_of(run, data, images=5) == pytest.approx(expected, rel=1e-6)


def test_even_attention_tells_nothing_and_has_the_whole_entropy() -> None:
    scores = scores_of(run_of("linear", sharpness=0.0), Scenes(6, size=32))
    assert scores is not None
    assert scores["entropy"] == pytest.approx(1)
    assert scores["information"] == pytest.approx(0, abs=1e-6)  # a single bin is in use
    assert scores["beyond_position"] == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_had_of_a_single_image_is_left_out() -> None:
    scores = scores_of(run_of("linear"), Scenes(1, size=32))
    assert scores is not None
    assert list(scores) == ["information", "entropy", "jaccard"]


def test_a_convnet_has_no_scores() -> None:
    model = untrained_segmentation()
    assert scores_of(Run(model, description(model)), Scenes(2, size=32)) is None


def test_nothing_is_printed_and_no_random_number_is_taken(capsys) -> None:
    run, data = run_of("linear"), Scenes(4, size=32)
    before = torch.get_rng_state()
    scores_of(run, data)
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")


def test_scores_are_cheap_enough_for_every_cell_of_a_study() -> None:
    """Two seconds are meant; five leave room for a machine that is busy."""
    run, data = run_of("linear", size=64), Scenes(64, size=64)
    scores_of(run, data, images=2)
    start = time.process_time()
    scores_of(run, data)
    assert time.process_time() - start < 5
