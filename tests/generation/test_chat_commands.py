"""Test the commands of a chat: they do what their help says, and a mistake is one line that changes nothing."""

import json
from pathlib import Path

import pytest
from test_chat import by_role, model, said, session

from minigpt.config import GenerationConfig, TokenizerConfig
from minigpt.errors import GenerationError, StorageError, UserError
from minigpt.generation.chat import COMMANDS, Commands, Session
from minigpt.generation.chat.conversation import Message
from minigpt.generation.chat.terminal import candidates
from minigpt.tokenizers import build


def commands(chat: Session) -> Commands:
    return Commands(chat, {"bold": {"temperature": 1.5, "top_k": 7}, "bad": {"top_p": 3}}.__getitem__, "runs/x")


def type_(chat: Commands, *lines: str) -> str:
    """The output of the last line."""
    shown = ""
    for line in lines:
        reply = chat.take(line)
        shown = reply.text + "".join(reply.answer or ())
    return shown


@pytest.mark.parametrize("line", ["", "/continue", "/regenerate", "/alternatives", "/alternatives 1", "/undo"])
def test_what_needs_an_answer_says_so_before_there_is_one(line: str) -> None:
    chat = commands(session())
    if not line:
        assert type_(chat, line) == ""
        return
    with pytest.raises(GenerationError, match=r"nothing to|no answer yet"):
        type_(chat, line)


DAMAGED = {
    "not JSON": ("{", "cannot be read .*; choose another file$"),
    "a list": ("[]", "is not a saved chat"),
    "format": ({"format": 9}, "format"),
    "role": ({"messages": [{"role": "robot", "content": ""}]}, "message 1"),
    "late system": ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "message 2"),
    "content": ({"messages": [{"role": "user", "content": 7}]}, "content"),
    "messages": ({"messages": {}}, "must be a list"),
    "answers": ({"answers": -1}, "answers"),
    "settings": ({"settings": 3}, "settings"),
    "a setting": ({"settings": {"temperatur": 1}}, "did you mean temperature"),
    "a value": ({"settings": {"top_p": 4}}, "top_p"),
    "system": ({"messages": [{"role": "system", "content": "b"}]}, "not tuned on chats"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_one_line_and_changes_nothing(damage: str, tmp_path: Path) -> None:
    change, words = DAMAGED[damage]
    whole = {"format": 1, "messages": [], "settings": {}, "answers": 0}
    file = tmp_path / "chat.json"
    file.write_text(change if isinstance(change, str) else json.dumps(whole | change))
    chat = session()
    list(chat.say("abc"))
    before = said(chat), chat.config, chat.answers
    with pytest.raises(UserError, match=words) as caught:
        type_(commands(chat), f"/load {file}")
    assert "\n" not in str(caught.value)
    assert (said(chat), chat.config, chat.answers) == before


def test_saving_never_writes_over_something_else(tmp_path: Path) -> None:
    chat = commands(session())
    other = tmp_path / "novel.txt"
    other.write_text("chapter one")
    with pytest.raises(GenerationError, match="is not a saved chat"):
        type_(chat, f"/save {other}")
    assert other.read_text() == "chapter one"
    with pytest.raises(StorageError, match="cannot be written"):
        type_(chat, f"/save {tmp_path}/no/such/folder.json")
    with pytest.raises(GenerationError, match="no such file"):
        type_(chat, f"/load {tmp_path}/none.json")


BAD = {
    "/set temperature hot": "temperature: ",
    "/set temperature -1": "temperature: ",
    "/set temperture 1": "did you mean temperature?",
    "/set": "/set NAME VALUE",
    "/set top_p [": "not valid YAML",
    "/set num_samples 3": "one answer at a time",
    "/set logprobs 3": "/alternatives",
    "/set penalty_alpha 0.5": "top_k",
    "/set stop_regex (": "regular expression",
    "/preset bad": "top_p",
    "/preset": "/preset NAME",
    "/setings": "did you mean settings?",
    "/": "no such command",
    "/save": "/save FILE",
    "/load": "/load FILE",
    "/help nothing": "no such setting: nothing",
    "/alternatives x": "whole numbers",
    "/alternatives 1 2 3": "whole numbers",
    "/alternatives 99": "from 1 to 8",
    "/system be brief": "not tuned on chats",
    "/quit now": "takes nothing",
}


@pytest.mark.parametrize("line", BAD)
def test_a_mistake_is_one_line_and_nothing_is_lost(line: str) -> None:
    chat = session()
    list(chat.say("abc"))
    before = said(chat), chat.config, chat.answers
    with pytest.raises(UserError) as caught:
        type_(commands(chat), line)
    assert BAD[line] in str(caught.value)
    assert "\n" not in str(caught.value) and "generation" not in str(caught.value).split()[0]
    assert (said(chat), chat.config, chat.answers) == before
    assert len("".join(chat.say("abc"))) == 8


def test_set_changes_and_shows_one_setting() -> None:
    chat = commands(session())
    assert type_(chat, "/set temperature 0.5") == "temperature 0.5"
    assert type_(chat, "/set temperature").startswith("temperature 0.5: Divides the logits")
    assert chat.session.config.temperature == 0.5


def test_set_reads_texts_and_null() -> None:
    chat = commands(session())
    assert type_(chat, r'/set stop "\n\n"') and chat.session.config.stop == ("\n\n",)
    assert type_(chat, r"/set stop-regex \d+") and chat.session.config.stop_regex == r"\d+"
    assert type_(chat, "/set stop_regex null") and chat.session.config.stop_regex is None
    assert type_(chat, "/set stop User:") and chat.session.config.stop == ("User:",)
    assert type_(chat, '/set bad_words ["*x", "b"]') and chat.session.config.bad_words == ("*x", "b")
    assert type_(chat, "/set stop []") and chat.session.config.stop == ()


def test_settings_lists_all_and_marks_the_changed_ones() -> None:
    chat = commands(session())
    type_(chat, "/set temperature 0.5", r'/set stop "\n\n"')
    rows = type_(chat, "/settings").splitlines()
    assert [row.split()[1] for row in rows if row.startswith("*")] == ["temperature", "stop"]
    assert len(rows) == len(GenerationConfig.model_fields)


def test_preset_sets_several_settings() -> None:
    chat = commands(session())
    assert type_(chat, "/preset bold") == "temperature 1.5 top_k 7"
    assert chat.session.config.top_k == 7


def answered() -> tuple[Commands, str]:
    """A bold chat with one answer."""
    chat = commands(session())
    first = type_(chat, "/preset bold", "abc")
    return chat, first


def test_regenerate_continue_and_undo_change_the_last_answer() -> None:
    chat, first = answered()
    assert len(type_(chat, "/regenerate")) == 8 and len(type_(chat, "/continue")) == 8
    assert len(chat.session.messages[-1].content) == 16
    assert type_(chat, "/undo", "/undo").startswith("undone; the last text is now")
    assert chat.session.messages[-1].content == first


def test_alternatives_are_shown_and_one_is_taken() -> None:
    chat, first = answered()
    assert len(type_(chat, "/alternatives 2").splitlines()) == 12
    assert type_(chat, "/alternatives").count("%") == 8
    assert type_(chat, "/alternatives 2 3").startswith(first[0])


def test_an_empty_answer_has_no_alternatives() -> None:
    chat, _ = answered()
    chat.session.messages = (*chat.session.messages[:-1], Message("assistant", ""))
    with pytest.raises(GenerationError, match="the last answer is empty; /regenerate writes another"):
        type_(chat, "/alternatives 1")


def test_a_saved_chat_is_loaded(tmp_path: Path) -> None:
    chat, _ = answered()
    assert type_(chat, f"/save {tmp_path}/a.json", "/undo", f"/load {tmp_path}/a.json").startswith("loaded")


def test_an_empty_line_continues() -> None:
    chat, _ = answered()
    assert len(type_(chat, "")) == 8


def test_help_shows_every_command_or_one_or_a_setting() -> None:
    chat = commands(session())
    shown = type_(chat, "/help")
    assert all(f"/{name}" in shown and COMMANDS[name].help in shown for name in COMMANDS)
    assert type_(chat, "/help /undo") == f"/undo: {COMMANDS['undo'].help}"
    assert "Divides the logits" in type_(chat, "/help temperature")


def test_quit_leaves() -> None:
    assert commands(session()).take("/quit").leave


def test_a_text_may_begin_with_a_slash_and_hold_lines() -> None:
    letters = build(TokenizerConfig(kind="char"), ["abc/\n"])
    chat = commands(session(letters, model(letters)))
    type_(chat, "//a\nb")
    assert said(chat.session)[0] == ("user", "/a\nb")


def test_with_roles_there_is_a_system_text_and_an_empty_line_does_nothing() -> None:
    chat = commands(session(chat_format=by_role()))
    assert type_(chat, "/system be brief") == "system text set"
    assert type_(chat, "hi") and type_(chat, "") == ""
    assert said(chat.session)[:2] == [("system", "be brief"), ("user", "hi")]
    type_(chat, "/system be\nkind")
    assert said(chat.session)[0] == ("system", "be\nkind") and len(said(chat.session)) == 3
    type_(chat, "/system")
    assert said(chat.session)[0] == ("user", "hi")
    type_(chat, "/undo")
    assert said(chat.session)[0] == ("system", "be\nkind")
    type_(chat, f"/system {'s' * 60}")
    with pytest.raises(GenerationError, match="system text leaves no room in the context of 48 tokens"):
        type_(chat, "hi")


def test_tab_completes_commands_and_settings() -> None:
    words = {"/set": ["seed", "stop"], "/settings": [], "/quit": []}
    assert candidates("/se", words) == ["/set", "/settings"]
    assert candidates("/set s", words) == ["seed", "stop"]
    assert candidates("/set ", words) == ["seed", "stop"]
    assert candidates("/quit x", words) == candidates("/set seed 1", words) == candidates("once", words) == []
