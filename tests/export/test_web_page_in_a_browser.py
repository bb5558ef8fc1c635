"""Test the web page of a run in a real browser without a network: it writes what generate writes, chats, explains."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser_run import IN_CHROMIUM, opened_file
from page_run import TEXT, make_run

from minigpt import export_page, load_run
from minigpt.export.page.pack import rounded
from minigpt.generation.text import complete
from minigpt.tokenizers import Tokenizer
from minigpt.tokenizers.chat_template import Template
from minigpt.tokenizers.gpt2 import gpt2_tokenizer

pytestmark = IN_CHROMIUM


@contextmanager
def opened(browser: Any, file: Path, **look: Any) -> Iterator[Any]:
    """The page of a file, when it can be used."""
    with opened_file(browser, file, **look) as page:
        page.wait_for_selector("html[data-ready]")
        yield page


def write(page: Any, prompt: str, tokens: int, temperature: float = 0.0, seed: int = 0) -> str:
    """What the page writes."""
    page.click("#tab-write")
    for name, value in {"prompt": prompt, "max_new_tokens": tokens, "temperature": temperature, "seed": seed}.items():
        page.fill(f"#{name}", str(value))
    page.click("#write")
    page.wait_for_selector("#more:not([hidden])", timeout=120_000)
    return page.locator("#written").text_content()


def gpt2(request: pytest.FixtureRequest) -> Tokenizer:
    request.getfixturevalue("mirror")
    return gpt2_tokenizer()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("shape", "kind"),
    [("gpt2", "byte"), ("modern", "char"), ("modern", "bpe"), ("gpt2", "bpe"), ("modern", "gpt2"), ("gpt2", "gpt2")],
)
def test_it_writes_what_generate_writes(browser, request, shape, kind, precision, tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", shape, gpt2(request) if kind == "gpt2" else kind), "cpu")
    done = export_page(run, precision=precision)
    print(f"{shape}, {kind}, {precision}: {done.weights:,} weights, {done.bytes / 1e6:.2f} MB")
    model, count = rounded(run.model, precision), 200 if precision == "fp32" else 50
    with opened(browser, done.path) as page:
        for temperature, seed in ((0.0, 0), (0.8, 5)):
            found = write(page, "The cat", count, temperature, seed)
            settings: Any = {"max_new_tokens": count, "temperature": temperature, "seed": seed}
            expected = complete(model, ["The cat"], run.tokenizer, **settings)[0][0]
            assert found == expected.text
            assert page.locator("#write-status").inner_text().startswith(f"{expected.tokens} token")


def say(page: Any, text: str) -> None:
    """Send a message of a chat, and wait for the end of the first answer."""
    page.fill("#say", text)
    page.press("#say", "Enter")
    page.wait_for_selector("#again:not([hidden])")


@pytest.fixture(scope="module")
def tale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a chat."""
    run = make_run(tmp_path_factory.mktemp("tale") / "my <b>tale", kind="byte", max_new_tokens=30)
    Template(user="User: {}\n", assistant="Bot: {}\n").save(run)
    return export_page(load_run(run, "cpu")).path


def test_it_streams_stops_and_names_a_wrong_setting(browser, tale: Path) -> None:
    with opened(browser, tale) as page:
        page.fill("#max_new_tokens", "100000")
        page.click("#settings summary")
        page.uncheck("#stop_at_eos")
        page.fill("#prompt", "<img src=x onerror=alert(1)>")
        page.press("#prompt", "Control+Enter")
        page.wait_for_selector("#written:not(:empty)")
        assert page.locator("#write").inner_text() == "Stop"
        page.keyboard.press("Escape")
        page.wait_for_selector("#more:not([hidden])")
        assert "stopped" in page.locator("#write-status").inner_text()
        assert page.locator("#paper img").count() == 0
        assert page.locator("#given").text_content() == "<img src=x onerror=alert(1)>"
        page.fill("#top_p", "7")
        page.click("#write")
        page.wait_for_selector("#alert:not([hidden])")
        assert page.locator("#alert").inner_text() == "Top-p: give a number from 0.01 to 1."


def test_it_chats(browser, tale: Path) -> None:
    with opened(browser, tale) as page:
        page.click("#tab-chat")
        say(page, "Hi <b>you</b>")
        assert page.locator("#messages li.user p").inner_text() == "Hi <b>you</b>"
        first = page.locator("#messages li.assistant p").text_content()
        page.click("#again")
        page.wait_for_selector("#messages li.assistant p:not(.busy)")
        page.wait_for_timeout(300)
        assert page.locator("#messages li.assistant p").text_content() != first, "the second answer has another seed"
        page.click("#clear")
        assert page.locator("#messages li").count() == 0


def test_a_new_chat_begins_empty_while_the_model_answers(browser, tale: Path) -> None:
    with opened(browser, tale) as page:
        page.click("#tab-chat")
        say(page, "Hi")
        page.fill("#max_new_tokens", "100000")
        page.click("#settings summary")
        page.uncheck("#stop_at_eos")
        page.fill("#say", "Tell me more")
        page.press("#say", "Enter")
        page.wait_for_selector("#messages li.assistant >> nth=1")
        page.dispatch_event("#clear", "click")  # the answer moves it while it grows
        page.wait_for_selector("#send:text-is('Send')")
        assert page.evaluate("messages.length") == 0 and page.locator("#again").is_hidden()
        assert page.locator("#chat-status").inner_text() == ""


def test_a_wrong_setting_takes_away_neither_the_text_nor_the_next_answer(browser, tale: Path) -> None:
    with opened(browser, tale) as page:
        first = write(page, "The cat", 5)
        page.fill("#top_p", "7")
        page.click("#more")
        page.wait_for_selector("#alert:not([hidden])")
        assert page.locator("#paper").text_content() == f"The cat{first}"
        page.click("#tab-chat")
        say(page, "Hi")
        page.fill("#top_p", "1")
        page.click("#again")
        page.wait_for_selector("#messages li.assistant p:not(.busy)")
        page.click("#tab-write")
        page.click("#more")
        page.wait_for_selector("#write-status:has-text('token')")
        assert page.locator("#given").text_content() == f"The cat{first}"


def test_the_explanation_of_a_text_that_was_left_does_not_end_the_writing(browser, tale: Path) -> None:
    with opened(browser, tale) as page:
        page.fill("#max_new_tokens", "100000")
        page.click("#settings summary")
        page.uncheck("#stop_at_eos")
        page.click("#tab-explain")
        page.fill("#text", "The cat")  # it is explained after a pause
        page.evaluate("document.getElementById('tab-write').click(), document.getElementById('write').click()")
        page.wait_for_timeout(1000)
        assert page.locator("#write").inner_text() == "Stop"
        page.keyboard.press("Escape")


def test_a_key_that_an_input_method_takes_sends_nothing(browser, tale: Path) -> None:
    with opened(browser, tale) as page:
        page.click("#tab-chat")
        page.fill("#say", "Hi")
        page.evaluate(
            "document.getElementById('say').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229}))"
        )
        assert page.input_value("#say") == "Hi"


def test_settings_of_the_run_beyond_the_dials_are_allowed(browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "my", temperature=2.5, top_k=500, max_new_tokens=8)
    with opened(browser, export_page(load_run(run, "cpu")).path) as page:
        page.click("#write")
        page.wait_for_selector("#write-status:has-text('token')")
        assert page.locator("#alert").is_hidden()


def test_a_letter_that_cleaning_changes_is_not_called_unknown(browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "my", max_new_tokens=8)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("clean: []", "clean: [ascii]"))
    with opened(browser, export_page(load_run(run, "cpu")).path) as page:
        write(page, "The cat \u2603", 8)
        assert "never saw" not in page.locator("#write-status").inner_text()
        page.click("#tab-explain")
        page.fill("#text", "The cat \u2603")
        page.wait_for_selector("#explain-status:has-text('8 tokens')")
        assert "never saw" not in page.locator("#explain-status").inner_text()


def test_a_text_from_right_to_left_begins_at_the_right(browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "my", kind="byte")
    with opened(browser, export_page(load_run(run, "cpu")).path) as page:
        write(page, "שלום, עולם.", 4)
        left, right = page.evaluate("""() => {
          const [paper, given] = ["paper", "given"].map((id) => document.getElementById(id).getBoundingClientRect());
          return [given.left - paper.left, paper.right - given.right];
        }""")
        assert right < 40 < left


def test_it_explains_what_is_typed_and_heads_can_be_switched_off(browser, tale: Path) -> None:
    with opened(browser, tale) as page:
        page.click("#tab-explain")
        page.fill("#text", "The cat sat on </b>")
        page.wait_for_selector("#explain-status:has-text('19 tokens, mean surprise')")
        before = page.locator("#explain-status").inner_text()
        assert page.locator("#next .next .token").count() == 10 and page.locator("#grid canvas").count() == 8
        page.locator("#grid button").nth(5).click()
        page.locator("#detail .switch").click()
        page.wait_for_selector("#explain-status .link")
        after = page.locator("#explain-status").inner_text()
        assert "1 head off (with all on:" in after and page.locator("#grid button.off").count() == 1
        page.locator("#explain-status .link").click()
        page.wait_for_selector("#explain-status:not(:has(.link))")
        assert page.locator("#explain-status").inner_text() == before
        page.locator("#tokens > span").nth(3).click()
        page.keyboard.press("ArrowRight")
        assert page.locator("#where").inner_text().startswith("token 4 (")
        page.fill("#text", "")
        page.wait_for_selector("#pictures", state="hidden")
        assert page.locator("#explain-status").inner_text() == "Type something."


def test_a_reader_who_is_in_the_field_finds_no_text_of_the_model_there(browser, tale: Path) -> None:
    hold = """() => { const real = ask, held = new Promise((done) => { window.release = done; });
      ask = async (kind, ...rest) => {
        const answer = await real(kind, ...rest);
        if (kind === 'write') await held;
        return answer;
      }; }"""
    with opened(browser, tale) as page:
        page.evaluate(hold)
        page.click("#tab-explain")
        page.focus("#text")
        page.evaluate("release()")
        page.wait_for_selector("#explain-status:not(:empty)")
        page.keyboard.insert_text("The cat")
        page.wait_for_selector("#explain-status:has-text('7 tokens, mean')")


def test_the_keyboard_stays_in_place_when_all_heads_are_switched_on(browser, tale: Path) -> None:
    with opened(browser, tale) as page:
        page.click("#tab-explain")
        page.fill("#text", "The cat")
        page.wait_for_selector("#explain-status:has-text('7 tokens, mean')")
        page.locator("#detail .switch").click()
        page.focus("#explain-status .link")
        page.keyboard.press("Enter")
        page.wait_for_selector("#explain-status:not(:has(.link))")
        assert page.evaluate("document.activeElement.id") == "explain-status"


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_scheme(browser, tale: Path, width: int, scheme: str) -> None:
    with opened(browser, tale, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(253, 252, 249)", "dark": "rgb(21, 22, 26)"}[scheme]
        for tab in ("write", "chat", "explain"):
            page.click(f"#tab-{tab}")
            if tab == "explain":
                page.fill("#text", TEXT[:25])
                page.wait_for_selector("#explain-status:has-text('25 tokens, mean')")
                page.wait_for_timeout(500)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        page.focus("#tab-write")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == "tab-chat"
