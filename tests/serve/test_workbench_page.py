"""Test the page of `minigpt serve` in a real browser without a network, as a person would use it.

Set MINIGPT_SHOTS to a folder to keep the pictures that the tests take. To draw those of docs/img again:
MINIGPT_PICTURES=runs pytest -m slow tests/serve/test_workbench_page.py -k pictures, where `make demo` wrote runs/demo.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_run import IN_CHROMIUM, WAIT, watched
from node_run import PACKAGES, needs_node
from served import make_runs, served

pytestmark = IN_CHROMIUM
pytest.importorskip("fastapi", reason="needs the extra serve")
AXE = PACKAGES / "axe-core" / "axe.min.js"
IMAGES = Path(__file__).parents[2] / "docs" / "img"
STORY = "Once upon a time there was a clever little otter named Nina who lived near the bridge. "
STORY += "One sunny morning, Rosie followed a butterfly and got lost."
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
LOOKS = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone-light": PHONE,
    "phone-dark": PHONE | {"color_scheme": "dark"},
}
NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`my`, which was trained; `base` and `talks`, which were not."""
    root = tmp_path_factory.mktemp("work")
    (root / "my.txt").write_text("The old mill went round and the cat sat by the door.\nThe dog saw the cat.\n" * 300)
    flags = "--name my --model.embed-dim 48 --model.num-layers 2 --model.num-heads 2 --model.max-seq-len 64"
    flags += " --train.max-steps 240 --train.batch-size 8 --train.device cpu --train.eval-every 20"
    flags += " --train.save-every 40 --train.keep-checkpoints 20 --train.sample-every 40 --tokenizer.kind char"
    flags += " --logging.plots false --logging.log-every 2"
    subprocess.run(
        [sys.executable, "-m", "minigpt", "train", str(root / "my.txt"), *flags.split()], cwd=root, check=True
    )
    make_runs(root / "runs")
    incident = {"step": 100, "what": NASTY, "batches": [3], "action": "skipped", "rate_scale": 1.0, "checkpoint": None}
    (root / "runs" / "my" / "incidents.jsonl").write_text(json.dumps(incident) + "\n")
    return root / "runs"


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with served(runs) as found:
        yield found


class Opened:
    """Open a page; at the end check that there was no error and no request to another host."""

    def __init__(self, browser: Any, address: str, **look: Any):
        look = {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light"} | look
        self.address, self.context = address, browser.new_context(**look)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.wrong, self.asked = watched(self.page)

    def __enter__(self) -> Any:
        self.page.goto(self.address)
        self.page.wait_for_selector("html[data-ready]")
        return self.page

    def __exit__(self, *wrong: object) -> None:
        self.context.close()
        if wrong[0] is None:
            assert self.wrong == []
            assert [url for url in self.asked if not url.startswith((self.address, "blob:"))] == []


def go(page: Any, part: str, run: str = "my") -> None:
    page.evaluate(f"location.hash = '{part}/{run}'")
    page.wait_for_selector(f"#panel > .{part}")


def until(page: Any, true: str) -> None:
    """Wait until an expression is true; the page's own policy blocks Playwright's way to do it."""
    for _ in range(WAIT // 50):
        if page.evaluate(true):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it never came: {true}")


def shoot(page: Any, name: str) -> None:
    if folder := os.environ.get("MINIGPT_SHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def fits(page: Any) -> bool:
    """Whether nothing is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_live_run_shows_curves_events_and_how_to_repeat_it(browser, address: str) -> None:
    with Opened(browser, address) as page:
        go(page, "live")
        page.wait_for_selector("#chart-loss path.line.accent")
        assert page.locator(".figures").inner_text().startswith("step\n240 of 240")
        assert NASTY in page.locator(".events").inner_text()
        assert page.locator("pre.line").inner_text().startswith("minigpt train ")
        page.hover("#chart-loss svg", position={"x": 400, "y": 100})
        assert re.search(r"training\s+\d\.\d{4}", page.locator("#chart-loss .curve-readout").inner_text())
        page.click("[aria-label='Unit of the loss'] >> text=Bits per byte")
        shoot(page, "live")
        page.reload()
        page.wait_for_selector("#chart-loss path.line.accent")
        assert page.locator("#tabs [aria-current]").inner_text() == "Live run"


def test_each_checkpoint_continues_the_prompt(browser, address: str) -> None:
    with Opened(browser, address) as page:
        go(page, "learn")
        page.wait_for_selector(".scrub")
        shoot(page, "learn-samples")
        page.click("text=/Your prompt at \\d+ checkpoints/")
        page.fill(".learn textarea", "The old")
        page.click("text=Continue it at every checkpoint")
        page.wait_for_selector("text=Continue it at every checkpoint >> visible=true")
        until(page, "!document.querySelector('.learn .primary').disabled")
        last = page.locator(".sample.large").inner_text()
        page.press(".scrub input", "Home")
        first = page.locator(".sample.large").inner_text()
        assert last.startswith("The old") and first.startswith("The old") and first != last
        assert page.locator(".scrub output").inner_text().startswith("step ")
        shoot(page, "learn")


def test_a_text_is_written_together(browser, address: str) -> None:
    with Opened(browser, address) as page:
        go(page, "notebook")
        area = page.locator("textarea.paper")
        area.fill("")
        area.press_sequentially("The old mi")
        until(page, "document.querySelector('.ghost').textContent.length > 3")
        shoot(page, "notebook-suggestion")
        area.evaluate("at => at.dispatchEvent(new KeyboardEvent('keydown', {key: 'Tab', isComposing: true}))")
        assert area.input_value() == "The old mi", "an input method takes its own keys"
        area.press("Tab")
        assert area.input_value().startswith("The old mill")
        area.press("Control+z")
        assert area.input_value() == "The old mi"
        page.fill(".setting:has(#set-max_new_tokens) input[type=number]", "30")
        page.press(".setting:has(#set-max_new_tokens) input[type=number]", "Enter")
        area.press("Control+Enter")
        page.wait_for_selector(".tools .primary >> visible=true")
        assert len(area.input_value()) > 20
        page.click("button:text-is('Undo')")
        assert area.input_value() == "The old mi"
        page.select_option(".tools select", "3")
        page.click(".tools .primary")
        page.wait_for_selector(".tools .primary >> visible=true")
        assert page.locator(".card").count() == 3
        shoot(page, "notebook")
        page.locator(".card button").nth(1).click()
        assert len(area.input_value()) > 20 and page.locator(".card").count() == 0
        page.click(".setting:has(#set-max_new_tokens) .reset")
        assert page.input_value("#set-max_new_tokens") == "200"


def test_a_token_is_explained_and_gone_on_from(browser, address: str) -> None:
    with Opened(browser, address) as page:
        page.evaluate("localStorage.setItem('minigpt-notebook', 'The old mill went bound.')")
        go(page, "why")
        page.wait_for_selector(".text .surprising")
        page.locator(".text .surprising").nth(17).hover()
        assert "Why " in page.locator(".likeliest h2").inner_text()
        page.locator(".text .surprising").nth(18).click()
        assert "likelier" in page.locator(".likeliest").inner_text()
        shoot(page, "why")
        page.keyboard.press("ArrowLeft")
        page.locator(".text .surprising").nth(18).click()
        page.locator(".bar-row").first.click()
        page.wait_for_selector("textarea.paper")
        until(page, "document.querySelector('textarea.paper').value.startsWith('The old mill went r')")
        page.wait_for_selector(".tools .primary >> visible=true")


def test_two_models_are_compared(browser, address: str) -> None:
    with Opened(browser, address) as page:
        go(page, "compare")
        page.fill(".compare textarea", "the cat")
        page.click("text=Continue with both")
        page.wait_for_selector("text=Continue with both >> visible=true")
        texts = page.locator(".compare .sample").all_inner_texts()
        assert len(set(texts)) == 2 and all(text.startswith("the cat") for text in texts)
        assert "model.embed_dim" in page.locator(".runs-table").inner_text()
        shoot(page, "compare")


def test_seeds_are_drawn_as_a_band(browser, tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "runs")
    for name, seed, more in (("base", 1337, 0.0), ("talks", 7, 1.0)):
        config = runs / name / "config.yaml"
        config.write_text(config.read_text().replace("seed: 1337", f"seed: {seed}"))
        lines = [{"step": step, "epoch": 0, "tokens": step, "seconds": step, "val_loss": 3 + more} for step in (0, 10)]
        (runs / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with served(runs) as address, Opened(browser, address) as page:
        go(page, "compare", "base")
        page.wait_for_selector(".curve .band")
        assert page.locator(".curve .line").count() == 1
        assert page.locator(".curve-readout").inner_text() == "base: mean of 2 seeds, and their range"
        page.hover(".curve svg", position={"x": 400, "y": 100})
        assert "3.5000 (3.0000 to 4.0000)" in page.locator(".curve-readout").inner_text()
        assert page.locator(".runs-table tbody").inner_text().split() == ["train.seed", "1337", "7"]
        shoot(page, "seeds")


def test_a_chat_has_branches(browser, address: str) -> None:
    with Opened(browser, address) as page:
        go(page, "chat", "my")
        page.wait_for_selector("text=This run was not tuned on chats")
        go(page, "chat", "talks")
        page.fill(".setting:has(#set-max_new_tokens) input[type=number]", "12")
        page.press(".setting:has(#set-max_new_tokens) input[type=number]", "Enter")
        page.fill("#set-seed", "1")  # one answer in 4,000 is empty, and goes away
        page.press("#set-seed", "Enter")
        page.fill(".say textarea", "the cat")
        page.press(".say textarea", "Enter")
        page.wait_for_selector(".messages .assistant .tools button")
        page.click("text=Answer again")
        page.wait_for_selector("text=2 of 2")
        page.click("[aria-label='The branch before']")
        page.wait_for_selector("text=1 of 2")
        page.click("text=Edit")
        page.fill("[aria-label='The message']", "the dogs")
        page.click(".messages .primary")
        page.wait_for_selector(".messages .user >> text=2 of 2")
        page.wait_for_selector("text=Answer again")
        shoot(page, "chat")
        with page.expect_download() as found:
            page.click("text=Save")
        saved = json.loads(found.value.path().read_text())
        assert saved["format"] == 1 and saved["messages"][0] == {"role": "user", "content": "the dogs"}
        page.click("text=New chat")
        page.wait_for_selector("text=No messages yet")
        page.set_input_files("input[type=file]", found.value.path())
        page.click("[aria-label='The branch before']")
        assert page.locator(".messages .user p").inner_text() == "the cat"


def test_a_head_is_switched_off(browser, address: str) -> None:
    with Opened(browser, address) as page:
        page.evaluate("localStorage.setItem('minigpt-notebook', 'The old mill went round and the old')")
        go(page, "inside")
        page.wait_for_selector("#grid canvas")
        shoot(page, "inside")
        bars = page.locator("#next").inner_text()
        page.focus("#grid button")
        page.keyboard.press("x")
        page.wait_for_selector(".effect b")
        assert "1 part changed" in page.locator(".effect").inner_text()
        page.click("text=Scale or switch off layers")
        page.locator(".scale input").nth(1).fill("0")
        page.wait_for_selector("text=With 2 parts changed")
        assert page.locator("#next").inner_text() != bars
        shoot(page, "inside-changed")
        page.click("text=All as trained")
        page.wait_for_selector(".effect b", state="detached")
        assert page.locator("#next").inner_text() == bars


def test_one_token_alone_has_no_loss(browser, address: str) -> None:
    with Opened(browser, address) as page:
        page.evaluate("localStorage.setItem('minigpt-notebook', 'T')")
        go(page, "inside")
        page.wait_for_selector("#grid canvas")
        assert not page.locator("#lens-detail polyline[points*=',']").count()
        page.focus("#grid button")
        page.keyboard.press("x")
        page.wait_for_selector("text=Next token, changed")
        assert "nats" not in page.locator(".effect").inner_text()


def parts(page: Any) -> list[str]:
    """The names of all parts: those of the tabs, and a new run."""
    return page.eval_on_selector_all("#tabs a, #new", "all => all.map((each) => each.hash.slice(1).split('/')[0])")


def settle(page: Any) -> None:
    """Wait until a part has received everything that it asked for."""
    until(page, "!document.querySelector('.status.busy') && document.querySelector('#panel > .part > :not(.status)')")


@pytest.mark.parametrize("look", LOOKS)
def test_every_part_fits_its_window(browser, address: str, look: str) -> None:
    with Opened(browser, address, **LOOKS[look]) as page:
        for part in parts(page):
            go(page, part)
            settle(page)
            shoot(page, f"{look}-{part}")
            assert fits(page), part
        red, *_ = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (int(red) < 60) == look.endswith("dark")


@needs_node("axe-core")
@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_no_serious_fault(browser, address: str, look: str) -> None:
    with Opened(browser, address, bypass_csp=True, **LOOKS[look]) as page:
        page.evaluate("localStorage.setItem('minigpt-notebook', 'The old mill went bound.')")
        page.add_script_tag(path=AXE)
        found = []
        for part in parts(page):
            go(page, part, "talks" if part == "chat" else "my")
            settle(page)
            for fault in page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]:
                if fault["impact"] in ("serious", "critical"):
                    found += [f"{part}: {fault['id']}: {node['target']}" for node in fault["nodes"]]
        assert found == []


def test_the_first_screen_comes_at_once(browser, address: str) -> None:
    with Opened(browser, address) as page:
        go(page, "live")
        page.reload()
        page.wait_for_selector("#chart-loss path.line.accent")
        passed = page.evaluate("performance.now()")
    print(f"the first screen is there after {passed:.0f} ms")


@pytest.mark.skipif("MINIGPT_PICTURES" not in os.environ, reason="draws docs/img: MINIGPT_PICTURES=runs of make demo")
def test_the_pictures_of_the_docs_are_drawn(browser) -> None:
    with served(Path(os.environ["MINIGPT_PICTURES"])) as address, Opened(browser, address) as page:
        page.evaluate(f"localStorage.setItem('minigpt-notebook', {STORY!r})")
        for part in ("live", "notebook", "why", "inside"):
            go(page, part, "demo")
            settle(page)
            if part == "notebook":
                page.fill(".setting:has(#set-max_new_tokens) input[type=number]", "40")
                page.select_option(".tools select", "2")
                page.click(".tools .primary")
                page.wait_for_selector(".tools .primary >> visible=true")
            if part == "why":
                page.locator(".text .surprising").filter(has_text="Rosie").first.click()
            if part == "inside":
                page.evaluate("document.getElementById('grid').scrollIntoView()")
            page.evaluate(f"scrollBy(0, {-60 if part == 'inside' else -1000})")  # 60: below the slider
            page.wait_for_timeout(200)
            IMAGES.mkdir(exist_ok=True)
            file = IMAGES / f"workbench-{part}.png"
            page.screenshot(path=file)
            assert file.stat().st_size < 150_000


def test_without_runs_it_says_what_to_do(browser, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs") as address, Opened(browser, address) as page:
        page.wait_for_selector("text=Train your first model")
        shoot(page, "empty")
        page.click("#tabs >> text=Runs")
        page.wait_for_selector("text=No runs yet >> nth=0")


def test_a_wrong_key_is_told_and_escape_does_not_leave_the_page_dead(browser, runs: Path) -> None:
    with served(runs, key="sesame") as address:
        opened = Opened(browser, address)
        opened.page.goto(address)
        for _ in range(2):
            opened.page.wait_for_selector("dialog[open] input")
            opened.page.press("dialog input", "Escape")
        opened.page.wait_for_selector("dialog[open] input")
        for wrong in ("\u0441\u0435\u0437\u0430\u043c", "simsim"):  # the first cannot be sent in a header
            opened.page.fill("dialog input", wrong)
            opened.page.click("dialog button")
        opened.page.wait_for_selector("text=This key is wrong")
        opened.page.fill("dialog input", "sesame")
        opened.page.click("dialog button")
        opened.page.wait_for_selector("html[data-ready]")
        opened.context.close()


def test_times_are_rounded_before_they_are_cut_into_minutes(browser, address: str) -> None:
    words = "import('/page/words.js').then(({ duration }) => [59.4, 59.7, 119.7, 3599.8].map(duration))"
    with Opened(browser, address) as page:
        assert page.evaluate(words) == ["59 s", "1 min 0 s", "2 min 0 s", "1 h 0 min"]


def test_neighbouring_ticks_of_an_axis_have_different_names(browser, address: str) -> None:
    words = "import('/page/words.js').then(({ plain }) => [0.68, 0.685, 0.69, 1.405, 0.0005, 0].map(plain))"
    with Opened(browser, address) as page:
        assert page.evaluate(words) == ["0.68", "0.685", "0.69", "1.405", "5e-4", "0"]


def test_a_part_that_was_left_while_it_read_is_closed(browser, address: str) -> None:
    with Opened(browser, address) as page:
        go(page, "runs")
        late = "(...all) => new Promise((done) => setTimeout(done, 300)).then(() => real(...all))"
        page.evaluate(f"() => {{ window.real = fetch; window.fetch = {late}; }}")
        for part in ("live", "runs", "live"):
            page.evaluate(f"location.hash = '{part}/my'")
            page.wait_for_timeout(50)
        page.wait_for_selector("#chart-loss path.line.accent")
        page.wait_for_timeout(500)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        go(page, "runs")
        page.wait_for_timeout(7000)
        assert not [url for url in asked if "/api/figures" in url]


def test_the_live_run_forgets_that_the_server_was_gone(browser, address: str) -> None:
    with Opened(browser, address) as page:
        go(page, "live")
        page.wait_for_selector("#chart-loss path.line.accent")
        page.evaluate("() => { window.real = fetch; window.fetch = () => Promise.reject(new TypeError('gone')); }")
        page.wait_for_selector(".live .status:has-text('does not answer')")
        page.evaluate("() => { window.fetch = real; }")
        page.wait_for_selector(".live .status:has-text('does not answer')", state="detached")


def test_without_bits_per_byte_there_is_no_choice_of_units(browser, tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "runs")
    lines = [{"step": step, "epoch": 0, "tokens": step, "seconds": step * 20, "val_loss": 3.0} for step in (0, 1)]
    (runs / "base" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with served(runs) as address, Opened(browser, address) as page:
        go(page, "live", "base")
        page.wait_for_selector("#chart-loss svg")
        assert page.locator("[aria-label='Unit of the loss']").is_hidden()
        go(page, "compare", "base")
        page.click("[aria-label='Horizontal axis'] >> text=Minutes")
        page.wait_for_selector(".curve svg text.unit:has-text('minutes')")
        box = page.locator(".curve svg").bounding_box()
        page.hover(".curve svg", position={"x": box["width"] - 20, "y": 100})
        assert "minutes 0.33" in page.locator(".curve-readout").inner_text()


def test_the_key_is_asked_for_once(browser, runs: Path) -> None:
    with served(runs, key="sesame") as address:
        opened = Opened(browser, address)
        opened.page.goto(address)
        opened.page.fill("dialog input", "sesame")
        opened.page.click("dialog button")
        opened.page.wait_for_selector("html[data-ready]")
        assert opened.page.locator("#runs a").count() == 3
        opened.context.close()
        assert any("401" in each for each in opened.wrong)
