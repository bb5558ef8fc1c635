"""Test the parts of the page that start, list and inspect, by clicking in a real browser without a network."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser_run import IN_CHROMIUM
from served import make_runs, served
from test_workbench import until as wait_until
from test_workbench_page import NASTY, Opened, fits, go, shoot, until

pytestmark = IN_CHROMIUM
pytest.importorskip("fastapi", reason="needs the extra serve")
TEXT = "The cat sat on the mat.\nThe dog saw the cat, and the cat saw 12 dogs.\n" * 200
LINES = [
    {"step": step, "epoch": 0.1, "tokens": 100, "seconds": 1.0, "val_loss": 4.0 - step / 10, "bits_per_byte": 2.5}
    for step in (0, 10)
]
NOTE = "import('/page/api.js').then(({ ask }) => ask('/api/note', { name: 'base', note: 'x' }))"
"""Gives the run `base` a note, so that the list of runs changes."""


@contextmanager
def opened(browser: Any, folder: Path, **look: Any) -> Iterator[Any]:
    """A page over tiny runs below a folder."""
    (folder / "my.txt").write_text(TEXT)
    runs = make_runs(folder / "runs")
    (runs / "base" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    with served(runs) as address, Opened(browser, address, **look) as page:
        yield page


def names(page: Any) -> list[str]:
    return page.locator("tbody .link").all_inner_texts()


def change(page: Any) -> None:
    """Give a run a note, and wait until the page has the new list, and has had the time to draw its table."""
    page.evaluate("document.querySelector('#runs a').dataset.old = ''")
    page.evaluate(NOTE)
    page.wait_for_selector("#runs a[data-old]", state="detached")
    page.wait_for_timeout(3000)  # it draws the table every 2 seconds


def test_runs_are_sorted_filtered_noted_copied_and_deleted(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path, permissions=["clipboard-read", "clipboard-write"]) as page:
        go(page, "runs", "base")
        page.click("[data-key=name]")
        assert names(page) == ["base", "talks"]
        page.click("[data-key=name]")
        assert names(page) == ["talks", "base"]
        page.click("[data-key=best_val_loss]")  # in both orders, a run without a loss is last
        assert names(page) == ["base", "talks"]
        page.click("[aria-label='Star talks']")
        page.wait_for_selector("[aria-label='Star talks'][aria-pressed=true]")
        page.click("text=Starred")
        assert names(page) == ["talks"]
        page.click("[aria-label=Show] >> text=All")
        page.fill("[aria-label=Filter]", "bas")
        assert names(page) == ["base"]
        page.fill("[aria-label=Filter]", "nothing like it")
        page.wait_for_selector("text=No run matches")
        page.fill("[aria-label=Filter]", "")
        page.click("[data-key='run talks']")
        page.fill("[aria-label='Note about talks']", NASTY)
        page.press("[aria-label='Note about talks']", "Tab")
        page.wait_for_selector(f"td p.note:has-text('{NASTY}')")
        page.click("text=Copy the line that repeats it")
        page.wait_for_selector("text=Copied")
        assert page.evaluate("navigator.clipboard.readText()").startswith("minigpt train ")
        assert re.search(r"\d [MG]B", page.locator(".pairs").last.inner_text())
        shoot(page, "runs")
        page.click("button:text-is('Delete')")
        page.click("button:text-is('Cancel')")
        assert (tmp_path / "runs" / "talks").exists()
        page.click("button:text-is('Delete')")
        page.click("button:text-is('Delete it')")
        page.wait_for_selector("[data-key='run talks']", state="detached")
        assert not (tmp_path / "runs" / "talks").exists()


def test_after_a_run_is_deleted_the_links_lead_to_another(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        go(page, "runs", "talks")
        page.click("[data-key='run talks']")
        page.click("button:text-is('Delete')")
        page.click("button:text-is('Delete it')")
        page.wait_for_selector("[data-key='run talks']", state="detached")
        page.wait_for_selector("#tabs a[href='#live/base']")
        page.click("#tabs >> text=Live run")
        page.wait_for_selector("#chart-loss svg")


def test_the_keyboard_stays_where_it_is_when_the_table_is_drawn_again(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        go(page, "runs", "base")
        page.click("[data-key='run talks']")
        page.focus("[data-key='delete talks']")
        page.evaluate("document.querySelector('.runs-table').dataset.old = ''")
        page.evaluate(NOTE)
        page.wait_for_selector(".runs-table[data-old]", state="detached")
        assert page.evaluate("document.activeElement.dataset.key") == "delete talks"


def test_a_button_that_is_pressed_while_the_list_changes_keeps_its_click(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        go(page, "runs", "base")
        page.click("[data-key='run talks']")
        page.wait_for_selector("pre.line:has-text('minigpt train')")  # it moves the button
        page.hover("[data-key='delete talks']")
        page.mouse.down()
        change(page)
        page.mouse.up()
        page.click("button:text-is('Cancel')")
        page.wait_for_selector("td p.note:text-is('x')")


def test_a_text_is_sent_again_after_it_was_changed_but_not_in_another_encoding(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.evaluate("location.hash = 'start/'")
        page.set_input_files(".drop input", str(tmp_path / "my.txt"))
        page.wait_for_selector("text=repeated lines")
        assert page.evaluate("document.querySelector('.drop input').value") == ""
        (tmp_path / "old.txt").write_bytes("na\u00efve\n".encode("latin-1") * 100)
        page.set_input_files(".drop input", str(tmp_path / "old.txt"))
        page.wait_for_selector("text=This file is not UTF-8")
        assert not (tmp_path / "texts" / "old.txt").exists()


def test_any_setting_is_found_changed_and_judged(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.evaluate("location.hash = 'start/'")
        page.set_input_files(".drop input", str(tmp_path / "my.txt"))
        page.wait_for_selector("text=repeated lines")
        page.wait_for_selector("pre.line:has-text('minigpt train')")
        page.click("summary")
        page.fill("[aria-label='Find a setting']", "drop")
        assert page.locator(".form-row:visible label").all_inner_texts()[0] == "dropout"
        page.fill("[id='set.model.dropout']", "2")
        page.press("[id='set.model.dropout']", "Tab")
        page.wait_for_selector(".form-row .wrong:has-text('Input should be less than 1, not 2')")
        shoot(page, "start-wrong")
        page.fill("[id='set.model.dropout']", "0.1")
        page.press("[id='set.model.dropout']", "Tab")
        page.wait_for_selector("pre.line:has-text('--model.dropout=0.1')")
        page.fill("[aria-label='Find a setting']", "")
        shoot(page, "start-settings")
        page.check("text=only what I changed")
        assert page.locator(".form-row:visible").count() == 1
        page.click("text=Back to the defaults")
        until(page, "!document.querySelector('pre.line').textContent.includes('dropout')")
        page.uncheck("text=only what I changed")
        page.fill("[id='set.schedule.decay_fraction']", "0.5")
        page.press("[id='set.schedule.decay_fraction']", "Tab")
        page.wait_for_selector("text=schedule.decay_fraction: no effect, since schedule.kind is linear")


def test_a_run_starts_from_the_page_and_stops_and_goes_on(browser: Any, tmp_path: Path):
    with opened(browser, tmp_path) as page:
        page.evaluate("location.hash = 'start/'")
        page.set_input_files(".drop input", str(tmp_path / "my.txt"))
        page.wait_for_selector("text=repeated lines")
        page.click("summary")
        small = {"model.embed_dim": "16", "model.num_layers": "1", "model.num_heads": "1", "train.max_steps": "9999999"}
        more = {"logging.log_every": "5", "train.eval_every": "5000", "train.device": "cpu", "train.batch_size": "4"}
        for name, value in {**small, **more}.items():
            page.fill(f"[id='set.{name}']", value)
            page.press(f"[id='set.{name}']", "Tab")
        page.wait_for_selector("pre.line:has-text('--train.batch-size=4')")
        page.click("text=What to expect")
        page.wait_for_selector("text=memory, about")
        shoot(page, "start")
        page.get_by_label("Name of the run").fill("mine")
        page.click("text=Start training")
        page.wait_for_selector("#chart-loss path")
        page.wait_for_selector("text=/Process \\d+ uses/")
        shoot(page, "live-training")
        page.click("button:text-is('Stop')")
        page.click("button:text-is('Resume')")
        page.wait_for_selector("button:text-is('Stop')")
        page.evaluate("location.hash = 'runs/mine'")
        page.click("[data-key='run mine']")
        page.wait_for_selector("text=/Process \\d+/")
        page.click("button:text-is('Delete')")
        page.wait_for_selector("text=mine is being trained; stop it first.")
        found = page.evaluate("fetch('/api/run?name=mine').then((answer) => answer.json())")
        os.kill(found["process"]["pid"], signal.SIGKILL)
        wait_until(lambda: not page.evaluate("fetch('/api/run?name=mine').then((it) => it.json())")["process"])


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_data_shows_tokens_sizes_and_repeats(browser: Any, tmp_path: Path, look: str):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
    with opened(browser, tmp_path, **(phone if look == "phone" else {"color_scheme": look})) as page:
        go(page, "data", "base")
        page.fill(".data textarea", "a cat ☃\n")
        page.wait_for_selector(".boxes li >> nth=7")
        assert page.locator(".boxes li").first.inner_text().split("\n")[2] == "61"
        assert page.locator(".boxes .special").count() >= 1
        page.set_input_files(".drop input", str(tmp_path / "my.txt"))
        page.wait_for_selector("text=398 of 400 lines appeared before.")  # before, it shows the text of the run
        said = page.locator(".report").inner_text()
        assert "398 of 400 lines appeared before." in said and "in the validation text are in the training" in said
        shoot(page, f"data-{look}")
        assert fits(page)
        page.fill(".data textarea", "")
        page.wait_for_selector("text=Write something above")
        for part in ("start", "runs"):
            go(page, part)
            page.wait_for_timeout(500)
            shoot(page, f"{part}-{look}")
            assert fits(page), part
