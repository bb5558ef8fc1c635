"""Test the session of a chat and its commands directly: what is read, what is written, and that no message is lost."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import GenerationConfig, ModelConfig, TokenizerConfig
from minigpt.errors import ConfigError, GenerationError
from minigpt.generation.chat import Message, Plain, Session, Turns, load_session, save_session
from minigpt.generation.chat.conversation import fit
from minigpt.generation.text import complete, generate_text
from minigpt.model import GPT
from minigpt.tokenizers import EOS, ByteTokenizer, build
from minigpt.tokenizers.chat_template import Template, encode, encode_question
from minigpt.tokenizers.sentencepiece import SentencePieceTokenizer

LETTERS = build(TokenizerConfig(kind="char"), ["abcdefghijklmnopqrstuvwxyzUSA: .,\n"])
TEMPLATE = Template()


def model(tokenizer=LETTERS, max_seq_len: int = 48) -> GPT:
    """Weights large enough that the distribution is far from flat."""
    shape = ModelConfig(
        embed_dim=32, num_heads=4, num_kv_heads=2, num_layers=2, max_seq_len=max_seq_len, init_std=0.3,
        vocab_size=tokenizer.vocab_size,
    )  # fmt: skip
    return GPT(shape, seed=4).eval()


GPT_ = model()


def plain(tokenizer=LETTERS) -> dict[str, Any]:
    """Eight tokens, none of which ends the text."""
    return {"max_new_tokens": 8, "logit_bias": {f"#{tokenizer.eos_id}": -1e4}}


def session(tokenizer=LETTERS, gpt: GPT = GPT_, chat_format=None, **fields) -> Session:
    fields = {"seed": 3, **plain(tokenizer)} | fields
    return Session(gpt, tokenizer, GenerationConfig(**fields), chat_format)


def by_role(tokenizer=LETTERS) -> Turns:
    return Turns(tokenizer, lambda messages: encode_question(messages, TEMPLATE, tokenizer), " ", ("\nUser:",))


def said(chat: Session) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in chat.messages]


def test_without_roles_a_chat_is_one_text_that_goes_on() -> None:
    chat = session()
    first = "".join(chat.say("abc"))
    assert first == generate_text(GPT_, "abc", LETTERS, seed=3, **plain())
    second = "".join(chat.say("def"))
    assert said(chat) == [("user", "abc"), ("assistant", first), ("user", "\ndef"), ("assistant", second)]
    text = f"abc{first}\ndef"
    assert second == generate_text(GPT_, text, LETTERS, seed=4, **plain())
    more = "".join(chat.extend())
    assert more == generate_text(GPT_, text + second, LETTERS, seed=5, **plain())
    assert said(chat)[-1] == ("assistant", second + more)
    list(chat.say(" and"))
    assert said(chat)[4] == ("user", " and")  # text after a space continues the line


def test_each_turn_by_role_is_read_as_finetuning_spells_it() -> None:
    chat_format = by_role()
    chat = session(chat_format=chat_format, gpt=model(max_seq_len=128))
    chat.set_system("be brief")
    for text in ("who", "why"):
        list(chat.say(text))
    whole = [{"role": role, "content": content} for role, content in said(chat)]
    trained = encode(TEMPLATE.pieces(whole, LETTERS.eos_id is not None), LETTERS)[0].tolist()
    for turn in (2, 4):
        asked = chat_format.encode(chat.messages[:turn])
        assert trained[: len(asked)] == asked
        going_on = chat_format.encode(chat.messages[: turn + 1])
        assert trained[: len(going_on)] == going_on
    assert len(trained) == len(going_on) + 1  # the trained ids also have the end of text
    assert [role for role, _ in said(chat)] == ["system", "user", "assistant", "user", "assistant"]


def test_an_answer_by_role_has_no_leading_space_and_ends_at_the_user() -> None:
    def asked(messages) -> list[int]:
        return encode_question(messages, TEMPLATE, LETTERS)

    fields = {"gpt": model(max_seq_len=128), "max_new_tokens": 40, "temperature": 0.0}
    whole = "".join(session(chat_format=Turns(LETTERS, asked), **fields).say("hi"))
    begin, stop = whole[0], whole[12:15]  # as if these ids were the space and the next turn
    chat = session(chat_format=Turns(LETTERS, asked, begin, (stop,)), **fields)
    pieces = list(chat.say("hi"))
    assert "".join(pieces) == said(chat)[-1][1] == whole[: whole.index(stop)].lstrip(begin) != ""
    assert chat.ended and chat.ended.reason == "stop"


def test_a_stopped_answer_is_kept_and_the_chat_goes_on() -> None:
    whole = "".join(session(max_new_tokens=40).say("abc"))
    chat = session(max_new_tokens=40)
    for count, _ in enumerate(answer := chat.say("abc"), 1):
        if count == 5:
            chat.stop()
    assert said(chat)[-1] == ("assistant", whole[:5])
    assert chat.ended and (chat.ended.reason, chat.ended.tokens) == ("interrupted", 5)
    answer = chat.regenerate()
    next(answer)
    answer.close()  # the client stops reading
    assert len(said(chat)[-1][1]) == 1
    assert chat.ended.tokens == 1
    assert len("".join(chat.say("go"))) == 40
    assert (chat.ended.reason, chat.ended.tokens) == ("length", 40)


def test_another_try_differs_and_undo_takes_back_one_change_at_a_time() -> None:
    chat = session()
    first = "".join(chat.say("abc"))
    one = said(chat)
    second = "".join(chat.regenerate())
    assert second != first
    assert second == generate_text(GPT_, "abc", LETTERS, seed=4, **plain())
    assert [role for role, _ in said(chat)] == ["user", "assistant"]
    list(chat.extend())
    assert said(chat)[1][1].startswith(second) and len(said(chat)[1][1]) == 16
    chat.undo()
    assert said(chat)[1] == ("assistant", second)
    chat.undo()
    assert said(chat) == one
    chat.undo()
    assert said(chat) == []
    with pytest.raises(GenerationError, match="nothing to undo"):
        chat.undo()


def test_alternatives_are_the_models_most_likely_and_can_be_chosen(capsys) -> None:
    chat = session(temperature=0.0)
    first = "".join(chat.say("abc"))
    ids = LETTERS.encode("abc" + first)
    with torch.inference_mode():
        chances = GPT_(torch.tensor([ids]))[0].softmax(-1)
    for place in (1, 4, 8):
        found = chat.alternatives(place, 5)
        best = chances[1 + place].topk(5)
        assert [id_ for id_, _, _ in found.choices] == best.indices.tolist()
        assert [chance for _, _, chance in found.choices] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert found.text == first[place - 1]
        assert found.probability == pytest.approx(best.values[0].item(), abs=1e-5)  # greedy
    tokens = chat.tokens()
    assert [text for text, _ in tokens] == list(first)
    assert [chance for _, chance in tokens] == pytest.approx(
        [chances[2 + i, ids[3 + i]].item() for i in range(8)], abs=1e-5
    )
    assert "".join(chat.choose(4, 1)).startswith(first)  # alternative 1 is the greedy token
    third = chat.alternatives(4, 3).choices[2][1]
    again = "".join(chat.choose(4, 3))
    assert again.startswith(first[:3] + third) and len(again) == 4 + 8
    assert said(chat)[-1] == ("assistant", again)
    chat.undo(), chat.undo()
    assert said(chat)[-1] == ("assistant", first)
    for place, rank, text in [(0, 1, "from 1 to 8"), (9, 1, "from 1 to 8"), (1, 0, "from 1"), (1, 10**9, "from 1 to")]:
        with pytest.raises(GenerationError, match=text):
            list(chat.choose(place, rank))
    with capsys.disabled():
        print(
            f"\nalternatives at token 4 of {first!r}: {[f'{t} {p:.2f}' for _, t, p in chat.alternatives(4, 3).choices]}"
        )


def test_an_answer_gets_no_second_space_from_llamas_tokenizer() -> None:
    letters = [*" abcdefghijklmnopqrstuvwxyzAU:\n"]
    tokenizer = SentencePieceTokenizer(["", *(f"<0x{byte:02X}>" for byte in range(256)), *letters], {}, {EOS: 0})
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
    learned, _ = encode(TEMPLATE.pieces([user, answer]), tokenizer)
    assert by_role(tokenizer).encode([Message(**user), Message(**answer)]) == learned.tolist()[:-1]
    chat = session(tokenizer, model(tokenizer))
    list(chat.say("abc"))
    chat.messages = (*chat.messages[:-1], Message("assistant", "def"))
    assert [text for text, _ in chat.tokens()] == ["d", "e", "f"]
    assert "".join(chat.choose(2, 1)).startswith("d")


def test_half_a_character_cannot_be_chosen_and_the_end_of_text_can() -> None:
    tokenizer = ByteTokenizer()
    chat = session(tokenizer, model(tokenizer))
    list(chat.say("é"))
    chat.messages = (*chat.messages[:1], Message("assistant", "abc"))
    choices = chat.alternatives(2, tokenizer.vocab_size).choices
    assert {(0xC3, "<c3>"), (0xA9, "<a9>"), (0x61, "a")} <= {(id_, text) for id_, text, _ in choices}
    ranks = {id_: rank for rank, (id_, _, _) in enumerate(choices, 1)}
    with pytest.raises(GenerationError, match="half a character"):
        list(chat.choose(2, ranks[0xC3]))
    assert said(chat)[-1] == ("assistant", "abc")
    assert tokenizer.eos_id is not None
    assert "".join(chat.choose(2, ranks[tokenizer.eos_id])) == "a" == said(chat)[-1][1]
    assert chat.ended and chat.ended.reason == "eos"


@given(
    st.lists(st.tuples(st.text("ab", max_size=9), st.text("cd", max_size=9)), min_size=1, max_size=8),
    st.text("s", max_size=12),
    st.integers(2, 40),
    st.integers(1, 20),
    st.booleans(),
)
@settings(max_examples=300)
def test_the_context_keeps_the_newest_whole_turns(turns, system: str, limit: int, room: int, open_: bool) -> None:
    room = min(room, limit // 2)
    head = [Message("system", system)] if system else []
    messages = [Message(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]
    messages = messages if open_ else messages[:-1]

    def spelled(some) -> list[int]:  # two tokens of frame for each message
        return [0] * sum(2 + len(message.content) for message in some)

    last = next(at for at in range(len(messages) - 1, -1, -1) if messages[at].role == "user")
    frames = len(spelled([*head, *(Message(m.role, "") for m in messages[last:])]))
    too_long = len(spelled([*head, *messages[last:]])) > limit
    if frames > limit or (head and too_long and frames >= limit - room):
        with pytest.raises(GenerationError, match="system text"):
            fit([*head, *messages], spelled, limit, room)
        return
    kept = fit([*head, *messages], spelled, limit, room)
    assert len(spelled(kept)) <= limit
    whole = [messages[at:] for at in range(0, last + 1, 2) if len(spelled([*head, *messages[at:]])) <= limit - room]
    if whole:
        assert kept == [*head, *max(whole, key=len)]
        return
    text = "|".join(message.content for message in messages[last:])  # cut from the left as little as possible
    assert kept[: len(head)] == head
    assert text.endswith("|".join(message.content for message in kept[len(head) :]).lstrip("|"))
    if kept != [*head, *messages[last:]]:
        assert len(spelled([*head, *messages[last:]])) > limit
        assert len(spelled(kept)) == limit - room or not (head or any(message.content for message in kept))


@pytest.mark.parametrize("chat_format", [None, by_role()], ids=["one text", "by role"])
def test_a_long_chat_goes_on_past_the_context(chat_format, capsys) -> None:
    chat = session(chat_format=chat_format, gpt=model(max_seq_len=40), max_new_tokens=14)
    cut = []
    for _ in range(12):
        assert 0 < len("".join(chat.say("abcde"))) <= 14
        cut.append(chat.is_cut)
    assert cut == sorted(cut) and not cut[0] and cut[-1]
    list(chat.say("x" * 100))
    list(chat.extend())
    assert len(chat.messages) == 26
    with capsys.disabled():
        print(f"\ncontext of 40: full at turn {cut.index(True) + 1}, {sum(len(m.content) for m in chat.messages)} said")


def test_without_roles_the_end_of_a_long_answer_is_read_with_the_next_text() -> None:
    chat = session(gpt=model(max_seq_len=32), max_new_tokens=30)
    list(chat.say("abc"))
    assert not chat.is_cut and len(said(chat)[1][1]) == 30
    read = "".join(content for _, content in said(chat)) + "\ndef"
    second = "".join(chat.say("def"))
    assert chat.is_cut  # the older half of the context is free for the answer
    assert second == generate_text(chat.model, read[-16:], LETTERS, **plain() | {"seed": 4, "max_new_tokens": 30})


def test_a_question_is_not_dropped_for_a_long_system_text() -> None:
    chat = session(chat_format=by_role(), gpt=model(max_seq_len=64), max_new_tokens=40)
    chat.set_system("be brief and kind")
    with pytest.raises(GenerationError, match="system text leaves no room in the context of 64 tokens"):
        list(chat.say("where is the cat that was in the house"))
    list(chat.say("where is it"))
    assert not chat.is_cut


def test_a_saved_chat_with_half_a_character_is_read_and_undone(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a\ud800"}, {"role": "assistant", "content": "b"}]
    tree = {"format": 1, "run": "", "messages": messages, "settings": {}, "answers": 1}
    (tmp_path / "chat.json").write_text(json.dumps(tree))
    chat = Session(model(tokenizer := ByteTokenizer()), tokenizer, chat_format=by_role(tokenizer))
    chat.set_system("be brief")
    chat.set_system("")
    load_session(tmp_path / "chat.json", chat)
    save_session(tmp_path / "again.json", chat)
    assert said(chat) == [("user", "a\ufffd"), ("assistant", "b")]
    chat.undo()
    assert said(chat) == []


def test_a_saved_chat_goes_on_as_it_would_have(tmp_path: Path) -> None:
    chat = session(temperature=1.3, stop="q")
    for text in ("abc", "def"):
        list(chat.say(text))
    file = tmp_path / "chat.json"
    save_session(file, chat, "runs/x")
    tree = json.loads(file.read_text())
    assert tree["messages"][0] == {"role": "user", "content": "abc"}
    assert tree["settings"]["temperature"] == 1.3
    assert (tree["run"], tree["answers"]) == ("runs/x", 2)
    other = session()
    load_session(file, other)
    assert (other.messages, other.config) == (chat.messages, chat.config)
    assert "".join(other.say("go")) == "".join(chat.say("go"))
    assert "".join(other.regenerate()) == "".join(chat.regenerate())
    save_session(file, other)  # replaces its own file
    fresh = session()
    load_session(file, fresh)
    fresh.undo()  # removes the last turn
    assert fresh.messages == chat.messages[:4]
    load_session(file, fresh)
    fresh.undo()  # undoes the loading
    assert fresh.messages == chat.messages[:4]
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]


def test_a_chat_may_begin_with_the_assistant() -> None:
    chat = session()
    chat.restore([Message("assistant", "abc")], {}, 0)
    with pytest.raises(GenerationError, match="no text before the answer"):
        list(chat.regenerate())
    assert said(chat) == [("assistant", "abc")]
    chat = session(chat_format=by_role(), gpt=model(max_seq_len=128))
    chat.restore([Message("system", "be brief"), Message("assistant", "abc")], {}, 0)
    assert [text for text, _ in chat.tokens()] == [" ", "a", "b", "c"]
    again = "".join(chat.regenerate())
    assert said(chat) == [("system", "be brief"), ("assistant", again)] and again


def test_a_setting_that_fails_while_writing_takes_nothing_either() -> None:
    chat = session()
    list(chat.say("abc"))
    before = said(chat)
    chat.update({"logit_bias": {"zz": 1.0}})
    with pytest.raises(GenerationError, match="2 tokens"):
        list(chat.say("abc"))
    every = [text for id_ in range(LETTERS.vocab_size) if (text := LETTERS.decode([id_]))]
    chat.update({"logit_bias": {}, "bad_words": every, "min_new_tokens": 3})
    with pytest.raises(GenerationError, match="no token is left"):
        list(chat.say("abc"))
    assert said(chat) == before


def test_other_ways_of_writing_give_what_generate_gives() -> None:
    for fields in ({"best_of": 3}, {"num_beams": 3, "temperature": 0.0}, {"penalty_alpha": 0.4, "top_k": 4}):
        chat = session(**fields)
        expected = complete(GPT_, ["abc"], LETTERS, seed=3, **plain(), **fields)[0][0]
        assert "".join(chat.say("abc")) == expected.text == said(chat)[-1][1]
        assert chat.ended and (chat.ended.tokens, chat.ended.reason) == (expected.tokens, expected.reason)
    guessing = Session(GPT_, LETTERS, GenerationConfig(temperature=0.0, **plain()), draft=model())
    alone = session(temperature=0.0)
    assert "".join(guessing.say("abc")) == "".join(alone.say("abc"))


def test_texts_are_cleaned_as_in_training_and_broken_characters_fixed() -> None:
    chat = Session(GPT_, LETTERS, GenerationConfig(max_new_tokens=4), clean=str.lower)
    list(chat.say("ABC"))
    assert said(chat)[0] == ("user", "abc")
    chat.update({"stop": ["X", "ab"]})
    assert chat.config.stop == ("x", "ab")
    mended = Session(model(tokenizer := ByteTokenizer()), tokenizer, GenerationConfig(max_new_tokens=4))
    list(mended.say("a\ud800"))
    assert said(mended)[0] == ("user", "a\ufffd")


def test_a_session_refuses_settings_it_has_no_use_for() -> None:
    with pytest.raises(ConfigError, match="num_samples"):
        Session(GPT_, LETTERS, GenerationConfig(num_samples=2))
    assert Plain(LETTERS).encode([Message("user", "a"), Message("assistant", "b")]) == LETTERS.encode("ab")
