"""The explorer: one file that says what the backbone computed, whatever the names, within the size asked for."""

import base64
import html.parser
import json
import os
import re
import time
import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from models import SWIN, TINY_SWIN, TINY_VIT, VIT
from regard.backbones import build_backbone, normalize
from regard.errors import InputError
from regard.pictures.explorer import write_explorer

HOSTILE = "a\"'><script>document.title='owned'</script><!--<script>\u2028 \u202e{{ 7 * 7 }}&lt;é猫.png"
OTHER = "</script><img src=x onerror=\"document.title='owned'\">.jpg"


def vit():
    """Queries and keys are larger than a random model's, so that its attention is far from even."""
    backbone = build_backbone(VIT, **TINY_VIT).eval()
    with torch.no_grad():
        for attention in backbone.attention_modules:
            attention.qkv.weight *= 12
    return backbone


def swin():
    return build_backbone(SWIN, **TINY_SWIN).eval()


def noise(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    names = [HOSTILE, OTHER, *(f"{i}.png" for i in range(len(sizes)))]
    return [(names[i], rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for i, size in enumerate(sizes)]


@torch.inference_mode()
def attention(backbone, image, kind=True, blocks=None):
    batch = normalize(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    return backbone(batch, attention=kind, affinity=True, blocks=blocks).attention


class Parsed(html.parser.HTMLParser):
    """The elements of a page: (tag, attributes, text)."""

    def __init__(self, page):
        super().__init__()
        self.elements = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2].append(data)

    def text(self, ident):
        return next("".join(text) for _, attributes, text in self.elements if attributes.get("id") == ident)


@dataclass
class Content:
    """What a page holds, read as its script reads it."""

    page: str
    facts: dict = field(init=False)

    def __post_init__(self):
        self.parsed = Parsed(self.page)
        self.facts = json.loads(self.parsed.text("facts"))

    def inflated(self, ident):
        return zlib.decompress(base64.b64decode(self.parsed.text(ident)))

    def map(self, image, block, shape):
        return np.frombuffer(self.inflated(f"map-{image}-{block}"), "<f4").reshape(shape)

    def roots(self, image, block, shape):
        """Square roots of the affinity, each relative to its row's largest, in 1/255."""
        codes = np.frombuffer(self.inflated(f"affinity-{image}-{block}"), np.uint8).reshape(shape).astype(float)
        step = 256 / self.facts["levels"]
        return np.where(codes > 0, codes * step - (step - 1) / 2, 0.0)

    def affinity(self, image, block, shape):
        squares = self.roots(image, block, shape) ** 2
        return squares / squares.sum(-1, keepdims=True)


def naive_mask(weights, mass):
    """DINO's: sort ascending, keep where the cumulative sum exceeds 1 - mass."""
    order = np.argsort(weights, kind="stable")
    kept = np.zeros(weights.size, bool)
    kept[order] = np.cumsum(weights[order]) / weights.sum() > 1 - mass
    return kept


def written(tmp_path, *args, **options):
    return Content(write_explorer(tmp_path / "explorer.html", *args, **options).read_text("utf-8"))


def test_the_page_asks_for_nothing_outside_itself(tmp_path):
    page = written(tmp_path, vit(), noise((64, 64)))
    assert not re.search(r"https?://|@import|<link|url\(", page.page)
    for _, attributes, _ in page.parsed.elements:
        targets = [attributes[name] for name in ("src", "href", "srcset", "action", "data") if name in attributes]
        assert all(target.startswith("data:image/jpeg;base64,") for target in targets)
    assert sum("src" in attributes for _, attributes, _ in page.parsed.elements) == 1
    ids = re.findall(r'\bid="([^"]*)"', page.page)
    assert len(ids) == len(set(ids))


def test_names_are_text_never_markup(tmp_path):
    images = noise((64, 64), (64, 64))
    evil = written(tmp_path, vit(), images)
    plain = written(tmp_path, vit(), [(str(i), image) for i, (_, image) in enumerate(images)])
    tags = [tag for tag, _, _ in evil.parsed.elements]
    assert tags == [tag for tag, _, _ in plain.parsed.elements]
    assert [image["name"] for image in evil.facts["images"]] == [HOSTILE, OTHER]
    assert [attributes["alt"] for tag, attributes, _ in evil.parsed.elements if tag == "img"] == [HOSTILE, OTHER]


def test_a_name_that_is_no_text_is_written_all_the_same(tmp_path):
    (_, image), *_ = noise((64, 64))
    page = written(tmp_path, vit(), [(os.fsdecode(b"caf\xe9.png"), image)])
    assert page.facts["images"][0]["name"] == "caf?.png"


@pytest.mark.parametrize("make", [vit, swin])
def test_what_is_kept_is_what_the_backbone_computed(tmp_path, make):
    backbone, images = make(), noise((64, 64), (50, 72))
    page = written(tmp_path, backbone, images)
    assert page.facts["levels"] == 256
    assert [block["number"] for block in page.facts["blocks"]] == list(backbone.blocks)
    for i, (_, image) in enumerate(images):
        for b, found in enumerate(attention(backbone, image)):
            assert found.kind == page.facts["kind"]
            weights, affinity = found.weights[0].numpy(), found.affinity[0].numpy()
            np.testing.assert_allclose(page.map(i, b, weights.shape), weights, rtol=1e-6)
            tokens = [] if found.prefix is None else found.prefix[0].T.tolist()
            assert page.facts["images"][i]["tokens"][b] == pytest.approx(np.array(tokens))
            assert page.facts["tokens"] == ["CLS"][: len(tokens)]
            roots = 255 * np.sqrt(affinity / affinity.max(-1, keepdims=True))
            assert np.abs(page.roots(i, b, affinity.shape) - roots).max() <= 0.5001
            assert not page.affinity(i, b, affinity.shape)[affinity == 0].any()


def test_the_kind_and_the_blocks_asked_for(tmp_path):
    backbone, ((name, image),) = vit(), noise((64, 64))
    page = written(tmp_path, backbone, [(name, image)], kind="received", blocks=(-1, 1))
    assert page.facts["kind"] == "received"
    assert [block["number"] for block in page.facts["blocks"]] == [3, 1]
    for b, found in enumerate(attention(backbone, image, "received", (3, 1))):
        np.testing.assert_allclose(page.map(0, b, (3, 8, 8)), found.weights[0].numpy(), rtol=1e-6)


def test_a_smaller_limit_costs_levels_and_never_zeros(tmp_path):
    backbone, images = swin(), noise((64, 64), (64, 96))
    truth = [[m.affinity[0].numpy() for m in attention(backbone, image)] for _, image in images]
    limit, seen = 15_000_000, []
    while True:
        try:
            page = written(tmp_path, backbone, images, limit=limit)
        except InputError as error:
            message = str(error)
            break
        size = len(page.page.encode())
        assert size <= limit
        seen.append(page.facts["levels"])
        for i, blocks in enumerate(truth):
            for b, affinity in enumerate(blocks):
                roots = 255 * np.sqrt(affinity / affinity.max(-1, keepdims=True))
                kept = page.roots(i, b, affinity.shape)
                assert np.abs(kept - roots).max() <= 128 / page.facts["levels"] + 1e-3  # half a level
                assert (kept[affinity == 0] == 0).all()
        limit = size - 1  # one byte less, and this number of levels no longer fits
    assert seen == [256, 128, 64, 32, 16]
    assert re.fullmatch(
        r"the explorer of 2 images would take about 0\.\d MB with the fewest levels \(16\), and 0\.\d MB is the limit: "
        r"take (at most 1 image, )?a smaller size or fewer blocks",
        message,
    )


def test_wrong_inputs_are_one_line_and_leave_the_old_page(tmp_path):
    (tmp_path / "explorer.html").write_text("the old one")
    images, diverged = noise((64, 64)), vit()
    with torch.no_grad():
        diverged.attention_modules[0].qkv.weight.fill_(float("nan"))
    for arguments, options, message in [
        ((vit(), []), {}, "no images"),
        ((build_backbone("resnet10t"), images), {}, "resnet10t has no attention to explore: use a ViT or a Swin"),
        ((vit(), images), {"blocks": (4,)}, "has no block 4: it has 0 to 3"),
        ((vit(), images), {"blocks": ()}, "no blocks of .* are asked for"),
        ((swin(), images), {"kind": "cls"}, "has no cls attention: it has pooled, received"),
        ((diverged, images), {}, "the attention of vit_tiny_patch16_224 is not finite"),
        ((vit(), images), {"limit": 5_000}, r"take a smaller size or fewer blocks"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            write_explorer(tmp_path / "explorer.html", *arguments, **options)
        assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["explorer.html"]
    assert (tmp_path / "explorer.html").read_text() == "the old one"


@pytest.mark.slow
def test_sixteen_images_of_a_small_vit_stay_under_the_limit(tmp_path):
    """Noise compresses least, and an untrained model's rows are the least even in their codes."""
    backbone = build_backbone("vit_small_patch16_224").eval()
    path = write_explorer(tmp_path / "explorer.html", backbone, noise(*[(224, 224)] * 16))
    assert path.stat().st_size <= 15_000_000
    assert Content(path.read_text()).facts["levels"] >= 64


# --- In a browser --------------------------------------------------------------------------------------------------


class Opened:
    """A page in the browser, beside what it was made from."""

    def __init__(self, browser, folder, backbone, images, **options):
        self.browser, self.backbone, self.images = browser, backbone, images
        path = write_explorer(folder / "explorer.html", backbone, images, **options)
        self.content = Content(path.read_text("utf-8"))
        browser.get(path.as_uri())
        self.wait(0, len(self.content.facts["blocks"]) - 1)

    def script(self, text, *arguments):
        return self.browser.execute_script(text, *arguments)

    def wait(self, image, block):
        """Until this image and block are shown."""
        end = time.monotonic() + 10
        while self.script("return document.documentElement.dataset.shown") != f"{image}-{block}":
            assert time.monotonic() < end, self.browser.get_log("browser")
            time.sleep(0.02)

    def until(self, ident, words):
        """Until an element says this: it is drawn a frame later, and read out when all is at rest."""
        end = time.monotonic() + 5
        while not re.search(
            words, text := self.script("return document.getElementById(arguments[0]).textContent", ident)
        ):
            assert time.monotonic() < end, f"{ident} says {text!r}, not {words!r}"
            time.sleep(0.02)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def choose(self, name, value):
        self.browser.find_element("xpath", f"//label[input[@name='{name}' and @value='{value}']]").click()

    def shown(self, head=0):
        return np.array(self.script("return explorer.weights(arguments[0])", head))

    def mask(self, head=0):
        return np.array(self.script("return explorer.mask(arguments[0])", head), bool)

    def point(self, x, y, selector="#picture"):
        """Move the pointer to pixel (x, y) of the image, as drawn on a canvas."""
        canvas = self.find(selector)
        self.script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        image = self.script("return explorer.grid()")
        width, height = self.script(
            "const box = arguments[0].getBoundingClientRect(); return [box.width, box.height]", canvas
        )
        right, down = x / image["width"] * width - width / 2, y / image["height"] * height - height / 2
        self.hand.move_to_element_with_offset(canvas, round(right), round(down)).perform()

    def frame(self):
        """Until what was asked for is drawn."""
        self.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    @property
    def hand(self):
        """On pointer and keyboard."""
        from selenium.webdriver import ActionChains

        return ActionChains(self.browser)

    def click(self):
        """Where the pointer is."""
        self.hand.click().perform()

    def away(self):
        self.hand.move_to_element(self.find("h1")).perform()

    def press(self, *keys):
        self.hand.send_keys(*keys).perform()

    def patch(self):
        """(row, column), None where the heads' own maps are shown."""
        words = re.match(r"Row (\d+), column (\d+)", self.find("#status").text)
        return words and tuple(map(int, words.groups()))

    def is_row(self, image, block, head, patch):
        """Whether this row of the affinity is shown: as kept to rounding, as computed within half a level."""
        found = attention(self.backbone, self.images[image][1])[block]
        affinity = found.affinity[0].numpy()
        number = patch[0] * found.weights.shape[-1] + patch[1]
        shown, computed = self.shown(head), affinity[head, number]
        kept = self.content.affinity(image, block, affinity.shape)[head, number]
        np.testing.assert_allclose(shown, kept, atol=1e-12)
        np.testing.assert_allclose(np.sqrt(shown / shown.max()), np.sqrt(computed / computed.max()), atol=0.5001 / 255)
        return True

    def is_own(self, image, block, head):
        own = attention(self.backbone, self.images[image][1])[block].weights[0, head].numpy()
        np.testing.assert_allclose(self.shown(head), own.ravel(), rtol=1e-6)
        return True

    def no_errors(self):
        return [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return vit(), swin()


@pytest.fixture
def opened(chromium, tmp_path, models):
    return Opened(chromium, tmp_path, models[0], noise((64, 64), (50, 90)))


@pytest.mark.slow
def test_the_pointer_shows_the_row_of_the_patch_under_it(opened):
    assert opened.is_own(0, 3, 0)
    opened.point(5 * 8 + 4, 2 * 8 + 4)  # column 5, row 2
    opened.until("status", "^Row 2, column 5: head 0 attends most to")
    for head in range(3):
        assert opened.is_row(0, 3, head, (2, 5))
    top = int(opened.shown(0).argmax())
    opened.until("live", rf"^Row 2, column 5: head 0 attends most to row {top // 8}, column {top % 8} \(\d+\.\d%\)")
    opened.point(7 * 8 + 7, 7 * 8 + 7)
    opened.until("status", "^Row 7, column 7:")
    opened.point(1 * 8 + 4, 6 * 8 + 4, "#heads label:nth-child(2) canvas")  # over a small picture too
    opened.until("status", "^Row 6, column 1:")
    assert opened.is_row(0, 3, 1, (6, 1))
    opened.away()
    opened.until("status", "^Head 0, cls map: most at")
    assert opened.is_own(0, 3, 0)
    assert opened.no_errors()


@pytest.mark.slow
def test_a_click_pins_the_patch_and_another_releases_it(opened):
    opened.point(36, 36)
    opened.click()
    opened.until("status", "^Row 4, column 4, pinned")
    opened.away()
    opened.point(4, 4)
    assert opened.is_row(0, 3, 0, (4, 4))
    opened.point(36, 36)
    opened.click()
    opened.until("status", "^Row 4, column 4:")
    opened.away()
    opened.until("status", "^Head 0, cls map")


@pytest.mark.slow
def test_the_slider_sets_the_mass_of_the_mask(opened):
    from selenium.webdriver.common.keys import Keys

    slider = opened.find("#mass")
    opened.find("#picture").click()
    masses = set()
    for keys in ("", Keys.ARROW_RIGHT * 7, Keys.HOME, Keys.END):
        slider.send_keys(keys) if keys else None
        mass = float(slider.get_attribute("value"))
        masses.add(mass)
        opened.until("share", f"^{round(100 * mass)}%$")
        for head in range(3):
            assert (opened.mask(head) == naive_mask(opened.shown(head), mass)).all()
    assert masses == {0.6, 0.67, 0.01, 0.99}
    opened.press(Keys.ESCAPE)
    opened.until("status", "^Head 0, cls map")
    assert (opened.mask(1) == naive_mask(opened.shown(1), 0.99)).all()


@pytest.mark.slow
def test_everything_by_keyboard(opened):
    from selenium.webdriver.common.keys import Keys

    reached = set()
    opened.script("document.activeElement.blur()")
    for _ in range(12):
        opened.press(Keys.TAB)
        active = opened.browser.switch_to.active_element
        reached.add(active.get_attribute("name") or active.get_attribute("id"))
        label = opened.script(
            "const e = document.activeElement, seen = e.type === 'radio' ? e.nextElementSibling : e;"
            "return [getComputedStyle(seen).outlineStyle, e.computedName ?? e.ariaLabel ?? e.labels?.[0]?.textContent]"
        )
        assert label[0] != "none" or active.tag_name in ("body", "html")
    assert {"image", "picture", "block", "draw", "upsampling", "mass", "head"} <= reached

    picture = opened.find("#picture")
    picture.send_keys(Keys.ARROW_UP)  # starts in the middle
    opened.until("status", "^Row 4, column 4, pinned")
    picture.send_keys(Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_LEFT)
    opened.until("live", "^Row 2, column 3, pinned: head 0")
    assert opened.is_row(0, 3, 0, (2, 3))
    picture.send_keys(Keys.ARROW_LEFT * 9, Keys.ARROW_DOWN * 9)
    opened.until("status", "^Row 7, column 0, pinned")
    picture.send_keys("2")
    opened.until("status", "head 2 attends")
    picture.send_keys("]")
    opened.until("status", "head 0 attends")
    picture.send_keys("[")
    opened.until("status", "head 2 attends")
    picture.send_keys("9")  # there is no such head
    picture.send_keys(",")
    opened.wait(0, 2)
    assert opened.is_row(0, 2, 2, (7, 0))
    picture.send_keys("..")
    opened.wait(0, 0)
    picture.send_keys(Keys.ESCAPE)
    opened.until("status", "^Head 2, cls map")
    assert opened.is_own(0, 0, 2)
    assert opened.no_errors()


@pytest.mark.slow
def test_another_image_block_and_way_of_drawing(opened):
    opened.choose("image", 1)  # 50 x 90: its last row and column of patches are cut
    opened.wait(1, 3)
    opened.until("name", re.escape(OTHER))
    opened.point(89, 49)
    opened.until("status", "^Row 6, column 11:")
    assert opened.is_row(1, 3, 0, (6, 11))
    opened.choose("block", 1)
    opened.wait(1, 1)
    opened.away()
    opened.until("status", "^Head 0, cls map")
    assert opened.is_own(1, 1, 0)
    opened.choose("head", 2)  # the pointer is over it now
    opened.until("status", "head 2 attends")
    opened.away()
    opened.until("status", "^Head 2, cls map")
    pictures = set()
    for draw in ("heat map", "mask", "both"):
        for upsampling in ("nearest", "smooth"):
            opened.choose("draw", draw)
            opened.choose("upsampling", upsampling)
            opened.frame()
            pictures.add(opened.script("return document.getElementById('picture').toDataURL()"))
    assert len(pictures) == 5  # a mask is of whole patches, whatever the up-sampling
    assert opened.no_errors()


@pytest.mark.slow
def test_the_heat_map_is_what_draw_draws(opened):
    from regard.pictures.draw import COLOURS

    opened.choose("draw", "heat map")
    opened.frame()
    weights = opened.shown(0).reshape(8, 8)
    for row, column in (divmod(int(weights.argmax()), 8), divmod(int(weights.argmin()), 8)):
        x, y = column * 100 + 50, row * 100 + 50  # 800 pixels for 64
        pixel = np.array(
            opened.script(
                "const c = document.getElementById('picture');"
                "return [...c.getContext('2d').getImageData(arguments[0], arguments[1], 1, 1).data].slice(0, 3)",
                x,
                y,
            )
        )
        step = int(255 * weights[row, column] / weights.max())
        share = 0.65 * (0.5 + step / 510)
        grey = (pixel - share * COLOURS[step]) / (1 - share)  # what is left is the image, in grey
        assert np.ptp(grey) < 6
        assert -6 < grey.mean() < 261


@pytest.mark.slow
def test_scores_of_what_is_shown(opened):
    opened.point(20, 20)
    opened.until("status", "^Row 2, column 2")
    rows = [opened.shown(head) for head in range(3)]

    def bits(p):
        return -(p[p > 0] * np.log2(p[p > 0])).sum()

    for head, row in enumerate(rows):
        others = [bits((row + other) / 2) - (bits(row) + bits(other)) / 2 for i, other in enumerate(rows) if i != head]
        cells = [c.text for c in opened.browser.find_elements("css selector", f"tbody tr:nth-child({head + 1}) td")]
        assert cells == [
            f"{bits(row):.2f}",
            f"{100 * bits(row) / 6:.1f}%",
            f"{100 * naive_mask(row, 0.6).mean():.1f}%",
            f"{np.mean(others):.3f}",
            "–",  # on CLS: of a patch's row it is not kept
        ]
    opened.browser.find_element("id", "picture").send_keys("\ue00c")  # Escape
    opened.until("status", "^Head 0, cls map")
    (on_cls,) = opened.content.facts["images"][0]["tokens"][-1]
    cells = opened.browser.find_elements("css selector", "tbody td:last-child")
    assert [cell.text for cell in cells] == [f"{100 * share:.1f}%" for share in on_cls]


@pytest.mark.slow
def test_swin_has_a_grid_and_heads_for_each_block(chromium, tmp_path, models):
    opened = Opened(chromium, tmp_path, models[1], noise((64, 64)))
    for block, (heads, stride) in enumerate([(1, 4), (2, 8), (3, 16)]):
        opened.choose("block", block)
        opened.wait(0, block)
        assert len(opened.browser.find_elements("css selector", "#heads label")) == heads
        opened.point(34, 18)
        opened.until("status", f"^Row {18 // stride}, column {34 // stride}:")
        assert opened.is_row(0, block, heads - 1, (18 // stride, 34 // stride))
        opened.away()
        opened.until("status", "pooled map: most at")
        assert opened.is_own(0, block, heads - 1)
    assert opened.no_errors()


@pytest.mark.slow
def test_hostile_names_do_nothing_and_are_read_whole(chromium, tmp_path, models):
    opened = Opened(chromium, tmp_path, models[0], noise((64, 64), (64, 64)))
    assert opened.script("return document.getElementById('name').textContent") == HOSTILE
    assert "owned" not in opened.browser.title
    assert opened.no_errors()


@pytest.mark.slow
def test_text_can_be_read_in_light_and_dark_and_on_narrow_screens(opened):
    def luminance(colour):
        channels = np.array([int(c) for c in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    pairs = {"h1": "body", ".note": "body", "dd": "body", "thead th": "body", "kbd": "kbd", "legend": "body"}
    pairs |= {".segments input:checked + span": ".segments input:checked + span"}
    backgrounds = set()
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for text, behind in pairs.items():
            ink = luminance(opened.find(text).value_of_css_property("color"))
            paper = luminance(opened.find(behind).value_of_css_property("background-color"))
            assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, (scheme, text)
        backgrounds.add(opened.find("body").value_of_css_property("background-color"))
    assert len(backgrounds) == 2
    opened.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for width in (360, 800, 1280):
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        opened.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert opened.script("return document.documentElement.scrollWidth") <= width
    opened.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
