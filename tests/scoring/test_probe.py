"""The probe finds what was planted in columns, and says nothing of what was not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models import RESNET, SMALLEST_VIT, SWIN, TINY_RESNET, TINY_SWIN, VIT
from regard.backbones import build_backbone, normalize
from regard.data.datasets.scenes import Scenes
from regard.errors import InputError
from regard.results import is_head
from regard.scoring.chosen import Chosen
from regard.scoring.probe import probe
from regard.scoring.probe_columns import Layout, Patches, Reader, folds, layout, positions
from regard.scoring.probe_logistic import logistic_answers
from regard.scoring.probe_training import RATIOS, Rows, Training, Variant, terms_of, terms_of_rows
from regard.settings import Probing

CLASSES, PATCHES = 3, 64


def planted(image: int) -> Patches:
    """Features that tell one class from the rest, and a map that tells the other two apart; `other` is noise."""
    random = torch.Generator().manual_seed(image)
    pixels = torch.rand(PATCHES, CLASSES, generator=random).softmax(dim=1).pow(4) * 100
    noise = torch.randn(PATCHES, 6, generator=random)
    features = pixels[:, :1] / 100 + 0.2 * noise[:, :4]
    return Patches(torch.cat([features, (pixels[:, 1:2] - pixels[:, 2:]) / 10, noise[:, 5:]], dim=1), pixels)


@pytest.fixture
def training(tmp_path):
    parts = {"level 0": range(4), "maps": range(4, 5), "other": range(5, 6)}
    with Rows(tmp_path, Layout(parts, ((0, 0),), 8), CLASSES, [str(image // 2) for image in range(12)]) as rows:
        for image in range(12):
            rows.add(planted(image))
        yield Training(rows, range(12))


def test_what_is_planted_is_found_and_noise_is_not(training) -> None:
    of = training.rows.layout.of
    variants = {
        ("f", ""): Variant(of("level 0")),
        ("f", "+ maps"): Variant(of("maps"), ("f", "")),
        ("f", "+ other"): Variant(of("other"), ("f", "")),
    }
    chosen = training.choose(variants)
    assert chosen["f", "+ maps"].miou > chosen["f", ""].miou + 0.1
    assert chosen["f", "+ other"].miou == pytest.approx(chosen["f", ""].miou, abs=0.02)
    assert chosen["f", "+ maps"].power == chosen["f", ""].power
    assert chosen["f", "+ maps"].penalty == chosen["f", ""].penalty
    assert chosen["f", "+ maps"].ratio < RATIOS[-1]

    unseen = [planted(image) for image in range(20, 24)]
    scores = {}
    for name, choice in chosen.items():
        solved = training.solve(choice)[None]
        found = sum(terms_of_rows(one.columns[:, choice.columns], one.pixels, solved)[0] for one in unseen)
        scores[name] = float((found[0] / found[1]).mean())
    assert scores["f", "+ maps"] > scores["f", ""] + 0.1
    assert abs(scores["f", "+ other"] - scores["f", ""]) < 0.02


def test_a_solution_answers_columns_as_they_were_read(training) -> None:
    """Rows are standardised on disk, and weighed; scikit-learn sees them as they are."""
    from sklearn.linear_model import Ridge as Reference
    from sklearn.preprocessing import StandardScaler

    patches = [planted(image) for image in range(12)]
    columns, pixels = (torch.cat([getattr(one, what) for one in patches]).double() for what in ("columns", "pixels"))
    choice = training.choose({("f", ""): Variant(torch.arange(4))})["f", ""]
    weights = (pixels * (pixels.sum(0) / pixels.sum()).pow(-choice.power)).sum(1)
    scaler = StandardScaler().fit(columns[:, :4].numpy(), sample_weight=weights.numpy())
    reference = Reference(alpha=choice.penalty * float(weights.sum()))
    shares = pixels / pixels.sum(1, keepdim=True)
    reference.fit(scaler.transform(columns[:, :4].numpy()), shares.numpy(), sample_weight=weights.numpy())
    expected = reference.predict(scaler.transform(planted(30).columns[:, :4].double().numpy()))
    solved = training.solve(choice).double()
    found = solved[0] + planted(30).columns[:, :4].double() @ solved[1:]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)  # rows are summed in float32


def test_logistic_regression_is_scikit_learns_with_what_ridge_chose(training) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    of = training.rows.layout.of
    ridge = training.choose({("f", ""): Variant(of("level 0")), ("f", "+ maps"): Variant(of("maps"), ("f", ""))})
    made = {name: (choice, solved) for name, choice, solved in logistic_answers(training, ridge, ["f"], ["+ maps"])}
    for name, (choice, solved) in made.items():
        assert (choice.power, choice.ratio) == (ridge[name].power, ridge[name].ratio)
        assert choice.penalty == made["f", ""][0].penalty
        patches = [planted(image) for image in range(12)]
        columns, pixels = (torch.cat([getattr(one, what) for one in patches]) for what in ("columns", "pixels"))
        columns = columns[:, choice.columns].double().numpy()
        weights = (pixels * (pixels.sum(0) / pixels.sum()).pow(-choice.power)).sum(1)
        # scikit-learn's have one penalty for all columns: a column over the root of its ratio has that ratio
        ratios = (choice.penalties / choice.penalty).numpy()
        standard = StandardScaler().fit(columns, sample_weight=weights.numpy())
        reference = LogisticRegression(C=1 / (choice.penalty * float(weights.sum())), tol=1e-10, max_iter=5000)
        shares = pixels / pixels.sum(1, keepdim=True)
        each = (weights[:, None] * shares).T.flatten().numpy()  # a row of every class, by its share
        x = np.tile(standard.transform(columns) / np.sqrt(ratios), (CLASSES, 1))
        reference.fit(x, np.repeat(range(CLASSES), len(columns)), sample_weight=each)
        found = (solved[0] + patches[0].columns[:, choice.columns] @ solved[1:]).softmax(1)
        np.testing.assert_allclose(found, reference.predict_proba(x[:PATCHES]), atol=2e-3)  # float32, and where it ends


def test_of_many_rows_evenly_many_of_each_image_are_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("regard.scoring.probe_training.KEPT", 4 * (6 + CLASSES) * 12 * 10)
    parts = {"level 0": range(4), "maps": range(4, 5), "other": range(5, 6)}
    with Rows(tmp_path, Layout(parts, ((0, 0),), 8), CLASSES, ["a"] * 12) as rows:
        for image in range(12):
            rows.add(planted(image))
        assert [rows.count(image) for image in range(12)] == [10] * 12
        ((columns, pixels),) = rows.of([3])
        mean, deviation = rows.standard
    of_image = planted(3)
    for row, own in zip(columns, pixels, strict=True):
        place = int((of_image.pixels == own).all(dim=1).nonzero())
        torch.testing.assert_close(row * deviation.float() + mean.float(), of_image.columns[place])


def test_terms_are_pixels_and_the_ceiling_is_the_most_frequent_class() -> None:
    pixels = torch.tensor([[3.0, 1, 0], [0, 4, 0], [0, 2, 2]])
    found = terms_of(torch.tensor([[0], [1], [2]]), pixels)[0]
    # class 0: 3 hit of 3 + 1 taken; class 1: 4 hit of 7; class 2: 2 hit of 2 + 2 taken
    assert found.tolist() == [[3, 4, 2], [4, 7, 4]]


def test_folds_keep_groups_together_and_are_even() -> None:
    groups = ["a"] * 5 + ["b", "c"] * 2 + ["d"]
    found = folds(groups, 3)
    assert len(set(zip(groups, found.tolist(), strict=True))) == 4
    assert sorted(np.bincount(found).tolist()) == [2, 3, 5]


@pytest.mark.parametrize(
    ("name", "options"), [(VIT, SMALLEST_VIT), (SWIN, TINY_SWIN), (RESNET, TINY_RESNET)], ids=lambda x: str(x)[:6]
)
def test_columns_of_any_backbone(name, options) -> None:
    backbone = build_backbone(name, **options).eval()
    reader = Reader(backbone, CLASSES)
    places = reader.layout
    images = normalize(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    labels = torch.randint(0, CLASSES, (2, 64, 64))
    first, second = (reader.read(images[i : i + 1], labels[i : i + 1], str(i)) for i in range(2))
    assert first.columns.shape == ((64 // places.stride) ** 2, places.columns)
    assert first.pixels.sum() == 64 * 64
    grid = (64 // places.stride,) * 2
    level = next(i for i, stride in enumerate(backbone.strides) if stride == places.stride)
    with torch.inference_mode():
        own = backbone(images[:1]).pyramid[level][0].flatten(1).T
    torch.testing.assert_close(first.columns[:, places.of(f"level {level}")], own)
    torch.testing.assert_close(first.columns[:, places.of("position")], positions(*grid)[0].flatten(1).T)
    if backbone.heads:
        assert len(places.heads) == sum(backbone.block_heads)
        torch.testing.assert_close(second.columns[:, places.of("other")], first.columns[:, places.of("maps")])
        last = places.levels[-1]
        maps = first.columns[:, places.of("maps")]
        assert maps.std() > 0
        assert not torch.equal(first.columns[:, places.of(f"{last} x map")], first.columns[:, places.of(last)])
    else:
        assert "maps" not in places.parts


def test_maps_of_another_image_are_of_another_group() -> None:
    backbone = build_backbone(VIT, **SMALLEST_VIT).eval()
    reader = Reader(backbone, CLASSES)
    images = normalize(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    found = [reader.read(images[i : i + 1], labels, group).columns for i, group in enumerate("abbb")]
    maps, other = (layout(backbone).of(name) for name in ("maps", "other"))
    for i in (1, 2, 3):  # the last of group a, however long ago
        torch.testing.assert_close(found[i][:, other], found[0][:, maps])


def test_on_scenes_it_is_the_same_again_and_few_groups_are_said(tmp_path) -> None:
    backbone = build_backbone(VIT, **SMALLEST_VIT).eval()
    train, scored = (Chosen(Scenes(count, 32, split=split)) for count, split in ((10, "train"), (9, "test")))
    asked = Probing(size=32, fractions=(0.3, 1.0), draws=2, workers=0)
    found, again = (probe(backbone, train, scored, asked, tmp_path, bar=False) for _ in range(2))
    assert found == again
    assert (found.stride, found.kept) == (8, 10 * 16)
    assert 0 < found.rows[0].miou.mean < found.ceiling.mean < 1
    assert {row.fraction for row in found.rows} == {0.3, 1.0}
    assert all(row.draws == (2 if row.fraction < 1 else 1) for row in found.rows)
    heads = [row for row in found.rows if is_head(row)]
    assert len([row for row in heads if "+ head" in row.columns]) == 12
    assert {row.fraction for row in heads} == {1.0}
    for one in found.differences:
        pair = [
            row.miou.mean
            for columns in (one.columns, one.against)
            for row in found.rows
            if (row.features, row.columns, row.fraction) == (one.features, columns, one.fraction)
        ]
        assert one.miou.mean == pytest.approx(pair[0] - pair[1], abs=1e-12)
    single = probe(backbone, train, scored, replace(asked, limit=None, fractions=(0.1,), draws=1), tmp_path, bar=False)
    assert all(row.held_out == [None] for row in single.rows)  # of one image nothing is held out
    assert not list(tmp_path.iterdir())


def test_void_masks_are_refused(tmp_path) -> None:
    class Void(Scenes):
        def mask(self, i: int) -> np.ndarray:
            return np.full((32, 32), 255, np.uint8)

    backbone = build_backbone(VIT, **SMALLEST_VIT).eval()
    void, scenes = Chosen(Void(3, 32)), Chosen(Scenes(3, 32))
    for train, scored in ((void, scenes), (scenes, void)):
        with pytest.raises(InputError, match="no labelled pixel"):
            probe(backbone, train, scored, Probing(size=32, workers=0), tmp_path, bar=False)


def test_where_all_images_are_of_one_group_there_is_no_control(tmp_path) -> None:
    backbone, data = build_backbone(VIT, **SMALLEST_VIT).eval(), Chosen(Scenes(4, 32))
    with pytest.raises(InputError, match="all 4 images of a split are of one group"):
        probe(backbone, data, data, Probing(size=32, groups="^0", workers=0), tmp_path, bar=False)
