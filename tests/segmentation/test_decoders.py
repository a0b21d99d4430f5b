"""Heads: equality with the library's decoders and with naive versions, any size of image, gradients, errors."""

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from regard.backbones import build_backbone
from regard.errors import InputError
from regard.segmentation.heads import AdaptiveMean, BatchNorm, Neck, build_head
from regard.segmentation.model import SegmentationModel
from regard.settings import HEADS

STAGES = ((6, 8, 10, 12), (4, 8, 16, 32))
VIT = ((8, 8, 8, 8), (16, 16, 16, 16))
KINDS = {"stages": STAGES, "vit": VIT}
WIDTH = {"width": 16}


def head_for(name: str, kind: str, classes: int = 5) -> nn.Module:
    return build_head(name, *KINDS[kind], classes, options={} if name in ("linear", "ridge") else WIDTH)


def pyramid_of(channels, strides, height: int, width: int, batch: int = 2) -> tuple[Tensor, ...]:
    """Of an image that the strides need not divide."""
    return tuple(torch.randn(batch, c, -(-height // s), -(-width // s)) for c, s in zip(channels, strides, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_a_head_takes_images_of_any_size_and_any_number_of_classes(name: str, kind: str) -> None:
    head = head_for(name, kind).eval()
    for height, width in ((64, 64), (60, 92), (33, 65), (7, 100), (16, 16)):
        out = head(pyramid_of(*KINDS[kind], height, width, batch=1))
        assert out.shape[:2] == (1, 5)
        assert torch.isfinite(out).all()
    for classes in (1, 2, 171):
        assert head_for(name, kind, classes)(pyramid_of(*KINDS[kind], 60, 92)).shape[1] == classes


@pytest.mark.parametrize(
    ("name", "stages", "vit"),
    [
        ("linear", (15, 23), (4, 6)),
        ("fcn", (2, 3), (4, 6)),
        ("setr_pup", (32, 48), (64, 96)),
        ("unet", (15, 23), (16, 24)),
        ("segformer", (15, 23), (4, 6)),
        ("upernet", (15, 23), (16, 24)),
        ("deeplabv3plus", (15, 23), (16, 24)),
        ("atm", (15, 23), (4, 6)),
    ],
)
def test_the_grid_of_the_logits(name: str, stages: tuple[int, int], vit: tuple[int, int]) -> None:
    for kind, grid in (("stages", stages), ("vit", vit)):
        assert head_for(name, kind)(pyramid_of(*KINDS[kind], 60, 92)).shape[-2:] == grid


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_gets_a_gradient_and_every_level_that_is_read(name: str, kind: str) -> None:
    head = head_for(name, kind).eval()  # batch statistics would cancel what is the same everywhere, such as biases
    pyramid = tuple(x.requires_grad_() for x in pyramid_of(*KINDS[kind], 60, 92))
    out = head(pyramid)
    (out * torch.randn_like(out)).sum().backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
    read = tuple(i for i, x in enumerate(pyramid) if x.grad is not None and x.grad.abs().sum() > 0)
    assert read == head.levels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_a_single_small_image_can_be_trained_on(name: str, kind: str) -> None:
    head = head_for(name, kind).train()
    assert any(isinstance(module, BatchNorm) for module in head.modules()) != (name == "atm")
    for size in (16, 32):  # the last level is one position
        head(pyramid_of(*KINDS[kind], size, size, batch=1)).square().mean().backward()
        assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_batch_norm_is_the_usual_one_but_of_one_value() -> None:
    ours, usual = BatchNorm(3), nn.BatchNorm2d(3)
    for x in (torch.randn(2, 3, 4, 5), torch.randn(2, 3, 1, 1), torch.randn(1, 3, 1, 2)):
        assert torch.equal(ours(x), usual(x))
    before = ours.running_mean.clone()
    one = torch.randn(1, 3, 1, 1)
    assert torch.equal(ours(one), usual.eval()(one))
    assert torch.equal(ours.running_mean, before)


def test_means_over_cells_are_those_of_torchs_adaptive_pooling() -> None:
    for height, width in ((1, 1), (2, 5), (6, 6), (7, 13), (23, 12)):
        x = torch.randn(2, 3, height, width)
        for cells in (1, 2, 3, 6):
            torch.testing.assert_close(AdaptiveMean(cells)(x), F.adaptive_avg_pool2d(x, cells))


def test_heads_are_the_librarys_decoders_and_a_classifier_with_the_same_weights() -> None:
    channels, strides = STAGES
    pyramid = pyramid_of(channels, strides, 64, 96)
    image = torch.empty(2, 3, 64, 96)  # read by none, but for its size
    half = torch.empty(2, 0, 32, 48)
    references = {
        "unet": (UnetDecoder([3, *channels], [16, 8, 4], n_blocks=3), [image, *pyramid]),
        "segformer": (SegformerDecoder([3, *channels], 4, 16), [image, *pyramid]),
        "upernet": (UPerNetDecoder([3, 0, *channels], 5, 16), [image, half, *pyramid]),
    }
    for name, (decoder, inputs) in references.items():
        head = head_for(name, "stages")
        head.decoder.load_state_dict(decoder.state_dict())  # strict: the keys are the library's
        for module in head.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0
        for training in (True, False):
            expected = head.classify(decoder.train(training)(inputs))
            out = head.train(training)(pyramid)
            if name == "upernet":  # its pooling sums in another order, before six norms in a row
                torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
            else:
                assert torch.equal(out, expected), (name, training)


@pytest.mark.parametrize(("output_stride", "rates"), [(16, (6, 12, 18)), (8, (12, 24, 36))])
def test_deeplabv3plus_is_the_librarys_at_the_strides_that_the_paper_has(output_stride: int, rates) -> None:
    channels, strides = (6, 8, 12), (4, 8, 16) if output_stride == 16 else (4, 8, 8)
    decoder = DeepLabV3PlusDecoder((3, 0, 6, 12), 4, 16, rates, output_stride, aspp_separable=True, aspp_dropout=0.0)
    head = build_head("deeplabv3plus", channels, strides, 5, options={"width": 16})
    head.decoder.load_state_dict(decoder.state_dict())
    atrous = [
        module.dilation[0] for module in head.modules() if isinstance(module, nn.Conv2d) and module.dilation[0] > 1
    ]
    assert tuple(atrous) == rates
    pyramid = pyramid_of(channels, strides, 64, 96)
    image = torch.empty(2, 3, 64, 96)
    for training in (True, False):
        head.train(training).decoder.aspp.train(training)
        head.decoder.aspp[0].project[-1].p = 0.0
        expected = head.classify(decoder.train(training)([image, image, pyramid[0], pyramid[-1]]))
        assert torch.equal(head(pyramid), expected)


def test_fcn_and_setr_pup_are_what_their_papers_draw() -> None:
    def conv_relu(x: Tensor, block: nn.Sequential) -> Tensor:
        x = F.conv2d(x, block[0].weight, padding=1)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        return ((x - mean) / (var + 1e-5).sqrt()).clamp(min=0)

    pyramid = pyramid_of(*VIT, 60, 92)
    fcn = head_for("fcn", "vit").train()
    fcn.dropout.p = 0.0
    expected = fcn.classify(conv_relu(pyramid[-1], fcn.conv))
    torch.testing.assert_close(fcn(pyramid), expected, atol=1e-5, rtol=1e-5)  # other order of sums

    setr = head_for("setr_pup", "vit").train()
    x = pyramid[-1]
    for block in setr.convs:
        x = nn.Upsample(scale_factor=2, mode="bilinear")(conv_relu(x, block))
    torch.testing.assert_close(setr(pyramid), setr.classify(x), atol=1e-4, rtol=1e-4)  # four norms in a row


@pytest.mark.parametrize(("stride", "times"), [(4, 4), (8, 8), (14, 8), (16, 16), (32, 16)])
def test_setr_pup_never_outgrows_the_image(stride: int, times: int) -> None:
    head = build_head("setr_pup", (8,), (stride,), 2, options={"width": 8})
    assert head((torch.randn(1, 8, 3, 5),)).shape[-2:] == (3 * times, 5 * times)


def test_a_neck_gives_a_vits_levels_the_strides_of_stages_and_leaves_stages_alone() -> None:
    neck = Neck(*VIT, (2, 1, 0, -1))
    pyramid = pyramid_of(*VIT, 48, 80)  # 3 x 5 patches
    out = neck(pyramid)
    assert [tuple(x.shape[-2:]) for x in out] == [(12, 20), (6, 10), (3, 5), (2, 3)]
    assert out[2] is pyramid[2]
    assert torch.equal(out[3], F.max_pool2d(pyramid[3], 2, ceil_mode=True))  # the odd row and column stay
    assert not list(Neck(*STAGES, (2, 1, 0, -1)).parameters())
    stages = pyramid_of(*STAGES, 48, 80)
    assert all(a is b for a, b in zip(Neck(*STAGES, (2, 1, 0, -1))(stages), stages, strict=True))


@pytest.mark.parametrize("name", HEADS)
def test_short_pyramids_work_or_are_one_line(name: str) -> None:
    needed = {"segformer": 3, "unet": 2, "upernet": 2, "deeplabv3plus": 2}.get(name, 1)
    options = {} if name in ("linear", "ridge") else WIDTH
    for kind in KINDS.values():
        for levels in range(1, 4):
            channels, strides = (values[:levels] for values in kind)
            if levels < needed:
                with pytest.raises(InputError) as error:
                    build_head(name, channels, strides, 5, options=options)
                has = f"this backbone has {levels}"
                assert str(error.value) == f"head {name} needs a pyramid of {needed} levels, and {has}: use linear"
            else:
                out = build_head(name, channels, strides, 5, options=options)(pyramid_of(channels, strides, 60, 92))
                assert out.shape[:2] == (2, 5)


def test_an_unknown_head_or_option_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^unknown head 'upenet': did you mean 'upernet' or 'unet'\? known: linear, "):
        build_head("upenet", *STAGES, 5)
    with pytest.raises(InputError, match=r"^unknown option of head fcn 'wdth': did you mean 'width'\? known: width$"):
        build_head("fcn", *STAGES, 5, options={"wdth": 8})
    with pytest.raises(InputError, match=r"^head linear has no options, and width was given: leave it out$"):
        build_head("linear", *STAGES, 5, options={"width": 8})
    with pytest.raises(InputError, match=r"^layers of head atm 13 is out of bounds: take 1 or more, up to 12$"):
        build_head("atm", *STAGES, 5, options={"layers": 13})
    with pytest.raises(InputError, match=r"^maps of head atm should be true or false, not 1$"):
        build_head("atm", *STAGES, 5, options={"maps": 1})
    with pytest.raises(InputError, match=r"^width of head unet should be a whole number, not True$"):
        build_head("unet", *STAGES, 5, options={"width": True})
    with pytest.raises(InputError, match=r"^maps of head atm are attention, and this backbone has none: leave them "):
        build_head("atm", *STAGES, 5, options={"maps": True})
    with pytest.raises(InputError, match=r"^width of head unet 0 is out of bounds: take 1 or more, up to 2,048$"):
        build_head("unet", *STAGES, 5, options={"width": 0})


@pytest.mark.parametrize("name", HEADS)
def test_a_width_of_one_is_enough_to_run(name: str) -> None:
    options = {} if name in ("linear", "ridge") else {"width": 1}
    assert build_head(name, *STAGES, 2, options=options)(pyramid_of(*STAGES, 64, 64)).shape[1] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_an_exported_head_takes_other_sizes(name: str) -> None:
    kind = "vit" if name in ("unet", "upernet", "deeplabv3plus") else "stages"  # with the neck, where there is one
    head = head_for(name, kind).eval()
    free = [{2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC} for _ in range(4)]
    if kind == "vit":  # its levels are of one size; one that halves to a single position would be a program of its own
        height, width = torch.export.Dim("height", min=3), torch.export.Dim("width", min=3)
        free = [{2: height, 3: width} for _ in range(4)]
    program = torch.export.export(head, (pyramid_of(*KINDS[kind], 96, 160),), dynamic_shapes=(tuple(free),))
    other = pyramid_of(*KINDS[kind], 130, 75)
    torch.testing.assert_close(program.module()(other), head(other))


@pytest.mark.parametrize("backbone", ["resnet", "vit"])
@pytest.mark.parametrize("name", HEADS)
def test_a_model_answers_at_the_size_of_an_image_that_no_stride_divides(name: str, backbone: str) -> None:
    if backbone == "vit":
        options = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 4, "num_heads": 3}
        body = build_backbone("vit_tiny_patch16_224", **options)
    else:
        body = build_backbone("resnet18", channels=(8, 16, 16, 16))
    model = SegmentationModel(body, 3, head=name, head_options={} if name in ("linear", "ridge") else WIDTH).train()
    out = model(torch.randn(1, 3, 61, 92))
    assert out.shape == (1, 3, 61, 92)
    out.square().mean().backward()
    assert all(p.grad is not None for p in model.head.parameters())


def test_widths_of_a_unet_halve() -> None:
    head = build_head("unet", *STAGES, 5)
    assert [block.conv2[0].out_channels for block in head.decoder.blocks] == [256, 128, 64]
