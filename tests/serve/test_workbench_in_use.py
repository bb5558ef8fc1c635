"""Test faults of the page that only a person with a mouse, a keyboard or a slow link meets, in a real browser."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from browser_run import IN_CHROMIUM
from served import make_runs, served
from test_workbench_page import Opened, go, until
from test_workbench_runs_page import LINES, NOTE, change, names, opened

pytestmark = IN_CHROMIUM
pytest.importorskip("fastapi", reason="needs the extra serve")
HANG = """() => { window.real = fetch; window.fetch = (path, how) => (!path.startsWith('/v1/c') ? real(path, how)
  : new Promise((_, fail) => how.signal.addEventListener('abort', () => {
    window.ended = true;
    fail(how.signal.reason);
  }))); }"""
"""Completions and chats that give no token until they are stopped."""


def add_line(folder: Path, **figures: float) -> None:
    line = {**LINES[-1], "step": 20, **figures}
    with (folder / "runs" / "base" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def ask_without_end(page: Any) -> None:
    """Ask the run `talks` a question whose answer does not come."""
    go(page, "chat", "talks")
    page.wait_for_selector(".say textarea")
    page.evaluate(HANG)
    page.fill(".say textarea", "the cat")
    page.press(".say textarea", "Enter")
    page.wait_for_selector("text=Answering …")


def test_the_link_to_the_content_keeps_the_part(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        go(page, "notebook", "base")
        page.focus(".skip")
        page.keyboard.press("Enter")
        assert page.evaluate("[document.activeElement.id, location.hash]") == ["panel", "#notebook/base"]
        assert page.locator("#tabs [aria-current]").inner_text() == "Notebook"


def test_a_link_that_is_pressed_while_the_list_changes_keeps_its_click(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        go(page, "runs", "base")
        page.hover("#runs a[href='#runs/talks']")
        page.mouse.down()
        page.evaluate(NOTE)
        page.wait_for_selector("td p.note:text-is('x')")  # the page has the new list
        page.mouse.up()
        until(page, "location.hash === '#runs/talks'")


def test_the_click_that_ends_a_note_is_not_lost(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        go(page, "runs", "base")
        page.click("[data-key='run talks']")
        page.wait_for_selector("pre.line:has-text('minigpt train')")  # it moves the button
        page.fill("[aria-label='Note about talks']", "good")
        page.click("[data-key='delete talks']", delay=500)  # milliseconds that the button is pressed
        page.click("button:text-is('Cancel')")
        page.wait_for_selector("td p.note:text-is('good')")


def test_a_list_that_was_asked_for_before_a_change_does_not_undo_it(browser: Any, tmp_path: Path):
    hold = """() => { const real = fetch; window.held = []; window.fetch = async (path, how) => {
      const answer = await real(path, how);
      if (path === '/api/runs') await new Promise((done) => held.push(done));
      return answer;
    }; }"""
    with opened(browser, tmp_path) as page:
        go(page, "runs", "base")
        page.evaluate(hold)
        until(page, "held.length === 1")  # the page asks for the list every 4 seconds
        page.click("[aria-label='Star talks']")
        until(page, "held.length === 2")
        page.evaluate("held[0]()")
        page.wait_for_timeout(500)
        page.click("[aria-label=Show] >> text=Starred")
        assert names(page) == ["talks"]


def test_a_marked_command_stays_marked(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        go(page, "runs", "base")
        page.click("[data-key='run talks']")
        page.wait_for_selector("pre.line:has-text('minigpt train')")
        page.evaluate("getSelection().selectAllChildren(document.querySelector('pre.line'))")
        change(page)
        assert page.evaluate("String(getSelection())").startswith("minigpt train")


def test_a_run_that_writes_lines_leaves_its_page_in_peace(browser: Any, tmp_path: Path):
    uses = """() => { const real = fetch; window.fetch = async (path, how) => {
      const answer = await real(path, how);
      if (!path.startsWith('/api/run?')) return answer;
      return Response.json({ ...await answer.json(), process: { pid: 1, usage: { bytes: 7e6, seconds: 1 } } });
    }; }"""
    with opened(browser, tmp_path) as page:
        go(page, "live", "base")
        page.hover("#chart-loss svg", position={"x": 400, "y": 100})
        page.evaluate("document.querySelector('.live .columns button').dataset.same = ''")
        page.evaluate(uses)
        add_line(tmp_path)
        page.wait_for_selector("text=/Process 1 uses 7.0 MB/")
        assert page.locator(".live .columns button[data-same]").count() == 1
        assert "step " in page.locator("#chart-loss .curve-readout").inner_text()


def test_figures_that_two_requests_bring_are_counted_once(browser: Any, tmp_path: Path):
    slow = """() => { const real = fetch; window.fetch = async (path, how) => {
      if (path === '/api/resume') return Response.json({ done: true });
      if (!path.startsWith('/api/figures')) return real(path, how);
      window.reading = true;
      await new Promise((done) => setTimeout(done, 2000));
      return Response.json({ ...await (await real(path, how)).json(), state: 'interrupted' });
    }; }"""
    with opened(browser, tmp_path) as page:
        page.evaluate(slow)
        go(page, "live", "base")
        page.wait_for_selector("button:text-is('Resume')")
        add_line(tmp_path, skipped=1)
        page.evaluate("window.reading = false")
        until(page, "window.reading")
        page.click("button:text-is('Resume')")
        page.wait_for_selector("text=1 step changed no weight")
        page.wait_for_timeout(3000)
        assert page.locator("text=1 step changed no weight").count() == 1


def test_an_answer_that_breaks_off_does_not_end_the_requests(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.evaluate("() => { window.real = fetch; window.fetch = async () => new Response('{\"runs\": ['); }")
        page.wait_for_selector("#alert:has-text('broke off')")
        page.evaluate("() => { window.fetch = real; }")
        page.wait_for_selector("#alert", state="hidden")


def test_a_stream_that_breaks_off_says_so_and_keeps_its_text(browser: Any, tmp_path: Path):
    breaks = """() => { const real = fetch; window.fetch = async (path, how) => (path !== '/v1/completions'
      ? real(path, how) : new Response('data: {"choices": [{"text": " sat"}]}\\n\\n')); }"""
    with opened(browser, tmp_path) as page:
        page.evaluate("localStorage.setItem('minigpt-suggest', 'no')")
        go(page, "notebook", "base")
        page.fill("textarea.paper", "the cat")
        page.evaluate(breaks)
        page.click(".tools .primary")
        page.wait_for_selector(".notebook .status.wrong:has-text('broke off')")
        assert page.input_value("textarea.paper") == "the cat sat"


def test_a_reload_while_a_chat_is_answered_keeps_the_question_only(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        ask_without_end(page)
        page.reload()
        page.wait_for_selector(".messages .user >> text=the cat")
        assert page.locator(".messages .assistant").count() == 0


def test_a_run_that_cannot_be_deleted_stays_chosen(browser: Any, tmp_path: Path):
    fails = """() => { const real = fetch; window.fetch = async (path, how) => (path !== '/api/delete' ? real(path, how)
      : Response.json({ error: { message: 'it is starting' } }, { status: 400 })); }"""
    with opened(browser, tmp_path) as page:
        go(page, "runs", "talks")
        page.evaluate(fails)
        page.click("[data-key='run talks']")
        page.click("[data-key='delete talks']")
        page.click("button:text-is('Delete it')")
        page.wait_for_selector("text=It is starting")
        assert page.evaluate("location.hash") == "#runs/talks"
        assert page.locator("[data-key='delete talks']").count() == 1


def test_the_keyboard_stays_on_the_part_that_it_opens(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.focus("#tabs a[href^='#why/']")
        page.keyboard.press("Enter")
        page.wait_for_selector("#panel > .why")
        assert page.evaluate("document.activeElement.textContent") == "Why this word"


def test_an_emptied_text_leaves_no_tokens_of_the_old_one(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.evaluate("localStorage.setItem('minigpt-notebook', 'the cat')")
        go(page, "why", "base")
        page.wait_for_selector(".bar-row")
        page.fill(".why textarea", "")
        page.click("text=Read it")
        assert page.locator(".bar-row").count() == 0


def test_a_count_is_never_a_thousand_thousands(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        shown = page.evaluate("import('/page/words.js').then(({ short }) => [999, 999940, 999960, 1e6].map(short))")
        assert shown == ["999", "999.9k", "1.00M", "1.00M"]


def test_a_task_that_was_overtaken_does_not_hide_the_newest(browser: Any, tmp_path: Path):
    two = """import('/page/words.js').then(async ({ during }) => {
      const box = document.createElement('p'), end = [];
      const wait = () => new Promise((done) => end.push(done));
      const [first, second] = [during(box, 'one', wait), during(box, 'two', wait)];
      end[0]();
      await first;
      const between = box.textContent;
      end[1]();
      await second;
      return [between, box.textContent];
    })"""
    with opened(browser, tmp_path) as page:
        assert page.evaluate(two) == ["two", ""]


def test_a_chat_that_is_left_while_it_is_answered_stays_with_its_run(browser: Any, tmp_path: Path):
    runs = make_runs(tmp_path / "runs")
    shutil.copytree(runs / "talks", runs / "other")
    before = {"role": "root", "content": "", "chosen": 0, "next": [{"role": "user", "content": "hello", "next": []}]}
    with served(runs) as address, Opened(browser, address) as page:
        page.evaluate(f"localStorage.setItem('minigpt-chat:other', {json.dumps(json.dumps(before))})")
        ask_without_end(page)
        page.evaluate("location.hash = 'chat/other'")
        page.wait_for_selector(".messages .user >> text=hello")
        page.evaluate("location.hash = 'chat/talks'")
        page.wait_for_selector(".messages .user >> text=the cat")


def test_a_new_chat_ends_the_answer_in_the_old_one(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        ask_without_end(page)
        page.click("text=New chat")
        page.wait_for_selector("text=No messages yet")
        page.wait_for_selector(".say .primary >> visible=true")
        assert page.evaluate("window.ended")


def test_a_message_of_the_system_has_no_other_answer(browser: Any, tmp_path: Path):
    said = [{"role": role, "content": f"the {role}"} for role in ("system", "user", "assistant")]
    (tmp_path / "saved.json").write_text(json.dumps({"format": 1, "messages": said}))
    with opened(browser, tmp_path) as page:
        go(page, "chat", "talks")
        page.wait_for_selector(".say textarea")
        page.set_input_files("input[type=file]", tmp_path / "saved.json")
        page.wait_for_selector(".messages .assistant >> text=Answer again")
        assert page.locator("text=Answer again").count() == 1


def test_writing_that_another_part_began_ends_when_the_notebook_is_left(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.evaluate("localStorage.setItem('minigpt-notebook', 'the cat')")
        go(page, "why", "base")
        page.wait_for_selector(".bar-row")
        page.evaluate(HANG)
        page.locator(".bar-row").first.click()
        page.wait_for_selector("text=Writing …")
        go(page, "runs", "base")
        until(page, "window.ended")


def test_undo_takes_back_one_thing_at_a_time(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.evaluate("localStorage.setItem('minigpt-suggest', 'no')")
        go(page, "notebook", "base")
        area = page.locator("textarea.paper")
        area.fill("the cat")
        page.select_option(".tools select", "2")
        page.click(".tools .primary")
        page.wait_for_selector(".tools .primary >> visible=true")
        page.locator(".card button").first.click()
        used = area.input_value()
        area.press_sequentially("x")
        area.press("Control+z")
        assert area.input_value() == used
        area.press_sequentially("y")  # at once: it is a step of its own
        area.press("Control+z")
        assert area.input_value() == used


def test_a_deleted_letter_ends_the_suggestion(browser: Any, tmp_path: Path):
    dog = """() => { const real = fetch; window.fetch = async (path, how) => (path === '/v1/completions'
      ? Response.json({ choices: [{ text: ' dog' }] }) : real(path, how)); }"""
    with opened(browser, tmp_path) as page:
        go(page, "notebook", "base")
        page.evaluate(dog)
        area = page.locator("textarea.paper")
        area.fill("")
        area.press_sequentially("was a")
        until(page, "document.querySelector('.ghost').textContent === ' dog'")
        seen = "window.seen = document.querySelector('.ghost').textContent"  # the page's own listener comes first
        page.evaluate(f"document.querySelector('.paper').addEventListener('input', () => {{ {seen}; }})")
        area.press("Backspace")
        assert page.evaluate("window.seen") == ""


def test_if_one_of_two_models_fails_the_other_stops_too(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        go(page, "compare", "base")
        page.wait_for_selector(".compare textarea")
        page.evaluate(HANG)
        page.evaluate("""() => { const hang = fetch; let asked = 0; window.fetch = (path, how) => (
          path === '/v1/completions' && (asked += 1) === 1
            ? Response.json({ error: { message: 'too busy' } }, { status: 429 }) : hang(path, how)); }""")
        page.click("text=Continue with both")
        page.wait_for_selector("text=Too busy")
        until(page, "window.ended")


def test_two_texts_of_one_name_do_not_mix(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.evaluate("location.hash = 'start/'")
        page.wait_for_selector(".drop")
        for letter in "ab":  # three slices each
            file = {"name": "two.txt", "mimeType": "text/plain", "buffer": f"{letter * 9}\n".encode() * 130_000}
            page.set_input_files(".drop input", file)
        until(page, "[...document.querySelectorAll('.start option')].some((each) => each.value === 'sent: two-2.txt')")
    assert [len(set(file.read_text())) for file in sorted((tmp_path / "texts").glob("*.txt"))] == [2, 2]


def test_a_file_that_misses_the_place_for_texts_does_not_replace_the_page(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        dropped = """(file) => ["dragover", "drop"].map((kind) => {
          const data = new DataTransfer(), how = { dataTransfer: data, bubbles: true, cancelable: true };
          file ? data.items.add(new File(["a"], "a.txt")) : data.setData("text/plain", "a");
          const event = new DragEvent(kind, how);
          document.querySelector("h1").dispatchEvent(event);
          return event.defaultPrevented;
        })"""
        assert page.evaluate(dropped, True) == [True, True]
        assert page.evaluate(dropped, False) == [False, False]


def look_inside(page: Any) -> None:
    page.evaluate("localStorage.setItem('minigpt-notebook', 'the cat sat on a mat')")
    go(page, "inside", "base")


def test_the_keyboard_stays_on_the_head_that_it_switches(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        look_inside(page)
        page.wait_for_selector("#grid canvas")
        page.focus("#grid button >> nth=1")
        name = page.evaluate("document.activeElement.ariaLabel")
        page.keyboard.press("x")
        page.wait_for_selector(".effect b")
        assert page.evaluate("document.activeElement.ariaLabel") == name


def test_the_keyboard_stays_in_place_when_all_parts_are_as_trained(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        look_inside(page)
        page.click("text=Scale or switch off layers")
        page.focus("text=All as trained")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.textContent") == "Scale or switch off layers"


def test_a_part_that_is_opened_while_the_server_is_down_is_read_when_it_is_back(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.evaluate("() => { window.real = fetch; window.fetch = () => Promise.reject(new TypeError('down')); }")
        for part, whole in (("start", ".drop"), ("notebook", ".paper"), ("inside", "#grid")):
            go(page, part, "base")
            page.wait_for_selector(f".{part} .status.wrong:has-text('does not answer')")
            page.evaluate("() => { window.down = fetch; window.fetch = real; }")
            page.wait_for_selector(f".{part} {whole}", state="attached")
            page.evaluate("() => { window.fetch = down; }")


def test_two_tabs_show_one_chat(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        go(page, "chat", "talks")
        page.wait_for_selector(".say textarea")
        other = page.context.new_page()
        other.goto(page.url)
        ask_without_end(other)
        page.wait_for_selector(".messages .user >> text=the cat")
        page.evaluate(HANG)
        page.fill(".say textarea", "the dog")
        page.press(".say textarea", "Enter")
        kept = page.evaluate("localStorage.getItem('minigpt-chat:talks')")
        assert "the cat" in kept and "the dog" in kept


def test_the_chat_of_a_deleted_run_is_deleted_too(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.evaluate("localStorage.setItem('minigpt-chat:talks', '{}')")
        go(page, "runs", "base")
        page.click("[data-key='run talks']")
        page.click("[data-key='delete talks']")
        page.click("button:text-is('Delete it')")
        page.wait_for_selector("[data-key='run talks']", state="detached")
        assert page.evaluate("localStorage.getItem('minigpt-chat:talks')") is None


FULL = "() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }"


def test_a_chat_and_a_text_go_on_when_the_storage_of_the_browser_is_full(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.evaluate(FULL)
        go(page, "chat", "talks")
        page.fill(".say textarea", "the cat")
        page.press(".say textarea", "Enter")
        page.wait_for_selector(".messages .assistant")
        page.wait_for_selector("text=Save writes it to a file")
        go(page, "notebook", "base")
        page.fill(".paper", "the cat sat")
        page.wait_for_selector("text=3 words, 11 characters. The text does not fit")
        go(page, "live", "base")
        page.click("[aria-label='Unit of the loss'] >> text=Bits per byte")
        page.wait_for_selector("#chart-loss svg[aria-label^='Loss in bits per byte']")


def test_a_run_with_very_many_lines_is_shown(browser: Any, tmp_path: Path):
    many = """() => { const real = fetch; window.fetch = async (path, how) => {
      const answer = await real(path, how);
      if (!path.startsWith('/api/figures?')) return answer;
      const lines = Array.from({ length: 200_000 }, (_, step) => ({ step, seconds: step, loss: 2 }));
      return Response.json({ ...await answer.json(), lines, last: lines.length - 1 });
    }; }"""
    with opened(browser, tmp_path) as page:
        page.evaluate(many)
        go(page, "live", "base")
        page.wait_for_selector(".live .figures >> text=199,999")
