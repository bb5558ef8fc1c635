"""Test the page of explain in a real browser, offline: no error, no network request, and all controls work."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_run import IN_CHROMIUM, opened_file

from minigpt.config import ModelConfig
from minigpt.explanation import explain
from minigpt.explanation.html import make_page
from minigpt.model import GPT
from minigpt.tokenizers import ByteTokenizer

TEXT = "the cat </script><b>sat\non the mat & the cat"
pytestmark = IN_CHROMIUM


@pytest.fixture(scope="module")
def explanation() -> dict[str, Any]:
    tokenizer = ByteTokenizer()
    shape = {"embed_dim": 48, "num_heads": 3, "num_layers": 4, "max_seq_len": 256, "init_std": 0.3}
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, **shape), seed=2)
    return explain(model, tokenizer, tokenizer.encode(TEXT), run="tiny")


@pytest.fixture
def page(browser: Any, explanation: dict[str, Any], tmp_path: Path) -> Iterator[Any]:
    file = tmp_path / "explain.html"
    file.write_text(make_page(explanation), encoding="utf-8")
    with opened_file(browser, file) as opened:
        yield opened


def paper(page: Any) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_the_text_is_shown_as_it_is(page):
    assert page.locator("#tokens").inner_text().replace("↵", "") == TEXT
    assert page.locator("#tokens > span").count() == len(TEXT)
    assert page.locator("#tokens b, #next b script").count() == 0
    assert page.locator("h2").count() == 6
    assert page.locator("#lens tbody tr").count() == 5
    assert page.locator("#grid button").count() == 12


def test_the_token_is_chosen_by_click_slider_buttons_and_arrow_keys(page, explanation):
    where = page.locator("#where")
    page.locator("#tokens > span").nth(7).click()
    assert where.inner_text().startswith(f"token 7 (first 0, last {len(TEXT) - 1}): ␣")
    before = [page.locator(each).inner_html() for each in ("#next", "#detail", "#stream", "#lens-detail")]
    page.keyboard.press("ArrowRight")
    assert where.inner_text().startswith("token 8 (")
    page.locator("#later").click()
    page.locator("#position").press("ArrowRight")
    assert where.inner_text().startswith("token 10 (")
    page.keyboard.press("End")
    assert where.inner_text().startswith(f"token {len(TEXT) - 1} (")
    after = [page.locator(each).inner_html() for each in ("#next", "#detail", "#stream", "#lens-detail")]
    assert all(old != new for old, new in zip(before, after, strict=True))
    best = explanation["vocabulary"][str(explanation["lens"]["ids"][-1][-1][0])]
    assert page.locator("#next .next .token").first.inner_text() == best.replace(" ", "␣").replace("\n", "↵")


def test_the_surprise_that_is_drawn_is_the_one_recorded(page, explanation):
    for at in (1, 20):
        page.locator("#tokens > span").nth(at).click()
        assert f"surprise {explanation['loss'][at]:.2f} nats" in page.locator("#where").inner_text()
        titles = page.locator("#loss-chart title").all_text_contents()
        assert f"{explanation['loss'][at]:.2f} nats, expected {explanation['entropy'][at - 1]:.2f}" in titles[at]


def test_heads_follow_pointer_and_keys_and_can_be_held(page, explanation):
    title, buttons = page.locator("#detail h3"), page.locator("#grid button")
    buttons.nth(4).hover()
    assert title.inner_text().startswith("Layer 1, head 1")
    buttons.nth(4).click()
    buttons.nth(8).hover()
    assert title.inner_text().startswith("Layer 1, head 1"), "a clicked head stays, also if the pointer moves"
    buttons.nth(4).focus()
    page.keyboard.press("ArrowDown")
    assert title.inner_text().startswith("Layer 2, head 1")
    page.keyboard.press("ArrowLeft")
    assert title.inner_text().startswith("Layer 2, head 0")
    box = page.locator(".matrix canvas").bounding_box()
    step = box["width"] / len(TEXT)
    page.mouse.move(box["x"] + 3.5 * step, box["y"] + 30.5 * step)  # row 30, column 3
    weight = explanation["attention"][2][0][30][3]
    told = page.locator(".readout").inner_text()
    assert told == f"Token 30 ␣ gives {told.split('gives ')[1].split(' of')[0]} of its attention to token 3 ␣"
    shown = told.split("gives ")[1].split(" %")[0].lstrip("<")
    assert float(shown) == pytest.approx(100 * weight, abs=0.7), "rounded to a percent, from 256 steps"
    page.mouse.click(box["x"] + 3.5 * step, box["y"] + 30.5 * step)
    assert page.locator("#where").inner_text().startswith("token 30 (")


FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Two frames: in the first, the page hears of a new size or scheme, and draws its pictures again."""


def becomes(page: Any, expression: str) -> bool:
    """Whether the expression becomes true within a minute. After a change, the page draws its pictures again."""
    for _ in range(1200):
        if page.evaluate(expression):
            return True
        page.wait_for_timeout(50)
    return False


def test_light_and_dark_by_the_system_and_by_the_button(page):
    light = paper(page)
    pixel = "[...document.querySelector('#grid canvas').getContext('2d').getImageData(0, 0, 1, 1).data]"
    ink = page.evaluate(pixel)
    page.emulate_media(color_scheme="dark")
    assert becomes(page, f"{pixel}.join() !== '{','.join(map(str, ink))}'"), "the pictures are drawn again"
    dark = paper(page)
    assert dark != light
    page.locator("#theme").click()
    assert paper(page) == light
    page.locator("#theme").click()
    assert paper(page) == dark


def contrast(page: Any, selector: str) -> float:
    """WCAG contrast between an element's text and its background, with transparent colours mixed."""
    return page.evaluate(
        """(selector) => {
          const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const chain = [];
          let at = document.querySelector(selector);
          for (; at; at = at.parentElement) chain.unshift(getComputedStyle(at));
          for (const style of chain) { canvas.fillStyle = style.backgroundColor; canvas.fillRect(0, 0, 1, 1); }
          const light = () => {
            const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
              .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const behind = light();
          canvas.fillStyle = chain.at(-1).color;
          canvas.fillRect(0, 0, 1, 1);
          const text = light();
          return (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05);
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_on_every_colour(page, scheme: str):
    page.emulate_media(color_scheme=scheme)
    coloured = [".surprising", ".looked", "#lens tbody td", ".kinds button"]
    full = "(all) => document.querySelectorAll(all).forEach((each) => each.style.setProperty('--v', 1))"
    page.evaluate(FRAMES)  # the change of scheme draws the detail again
    page.evaluate(full, ", ".join(coloured))
    plain = [".lead p", ".facts", ".note", "footer"]
    ratios = {selector: round(contrast(page, selector), 1) for selector in plain + coloured}
    print(f"{scheme}: contrast {ratios}")
    assert min(ratios.values()) >= 4.5


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_nothing_is_wider_than_the_screen(page, width: int):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("innerWidth") == width
    assert becomes(page, f"document.documentElement.scrollWidth <= {width}")


@pytest.mark.parametrize("width", [420, 1280])
def test_letters_keep_their_size_and_what_is_cut_says_so(page, width: int):
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate(FRAMES)  # drawn again
    sizes = page.evaluate(
        """() => [...document.querySelectorAll("svg")].flatMap((svg) => {
          const scale = svg.getBoundingClientRect().width / Number(svg.getAttribute("width"));
          return [...svg.querySelectorAll("text")].map((text) => scale * parseFloat(getComputedStyle(text).fontSize));
        })"""
    )
    names = page.locator(".matrix svg .name").all_inner_texts()
    print(f"{width} px: {len(sizes)} labels of {min(sizes):.0f} px or more, {len(names)} at the matrix")
    assert min(sizes) >= 11 - 1e-6
    assert len(names) == 2 * len(TEXT), "each token is named at both sides"
    cut = {}
    for box in ("#lens", "#loss-chart", "#stream"):
        cut[box] = page.locator(box).evaluate("(box) => box.scrollWidth > box.clientWidth + 2")
        hint = page.locator(box).evaluate("(box) => getComputedStyle(box, '::after').content")
        assert cut[box] == ("scroll" in hint) == (page.locator(box).get_attribute("tabindex") == "0")
    assert cut["#loss-chart"] == (width == 420) and not cut["#stream"]
    page.locator("#position").press("End")
    assert page.locator("#loss-chart").evaluate("(box) => box.scrollWidth - box.clientWidth - box.scrollLeft") < 60


def test_every_sign_is_explained(page):
    assert "␣ means a space" in page.locator(".signs").inner_text()
    page.locator("header summary").focus()
    page.keyboard.press("Enter")
    assert "1 nat = 1.44 bits" in page.locator("header details").inner_text()
    assert page.locator(".lead .symbols").count() == 6
    assert page.locator("#tied").is_visible(), "this model reads and writes with one table"
    assert page.locator("#mixture").is_hidden(), "this model has one softmax"


def test_a_text_of_one_token_and_a_model_of_one_head_are_drawn(browser, tmp_path):
    tokenizer = ByteTokenizer()
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, embed_dim=16, num_heads=1, num_layers=1), seed=2)
    file, wrong = tmp_path / "one.html", []
    file.write_text(make_page(explain(model, tokenizer, tokenizer.encode("a"))), encoding="utf-8")
    opened = browser.new_page()
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(file.as_uri())
    assert opened.locator("#next .next .token").count() == 10
    assert opened.locator("#stream svg").count() == 1
    assert opened.locator("#kinds > p").inner_text().startswith("No head has one of these kinds yet")
    assert not opened.locator("#kinds table").first.is_visible(), "folded"
    opened.locator("#kinds summary").click()
    assert opened.locator("#kinds table").first.is_visible()
    opened.close()
    assert wrong == []
