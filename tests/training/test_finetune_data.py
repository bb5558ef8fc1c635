"""Test records, chat templates and rows, each against a slow, obvious reference or Hugging Face."""

import json
import re
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
import torch
from rich.console import Console

from minigpt.errors import DataError, RunError, TokenizerError
from minigpt.model.loss import IGNORE
from minigpt.runs.feeds import _tell_losses, record_row
from minigpt.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from minigpt.tokenizers.chat_template import Template, encode_question, load_template, read_template
from minigpt.training.finetune.records import Record, holds_records, read_records, split_records
from minigpt.training.finetune.row_batches import WIDTHS, Row, RowBatches, fit, pack, row_eval_batches, stack

TEXT = "User: Assistant: System: Be brief. What is one and two? It is three, or so!\n#<>-0123456789" + ascii_lowercase
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "three three"},
]
OWN = Template(system="# {}\n", user="<- {} ->\n\n", assistant=">>  {}\n\n")


def tokenizers() -> dict[str, Tokenizer]:
    return {
        "char": CharTokenizer.from_texts([TEXT], unknown="error"),
        "byte": ByteTokenizer(),
        "bpe": BPETokenizer.train([TEXT * 20], 300, "gpt4"),
    }


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def record(kind: str, **fields: object) -> Record:
    return Record("x.jsonl:1", kind, fields)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
@pytest.mark.parametrize("template", [Template(), OWN], ids=["default", "own"])
def test_the_mask_is_on_the_replies_and_their_ends_alone(kind: str, template: Template) -> None:
    tokenizer = tokenizers()[kind]
    row = record_row(record("chat", messages=CHAT), template, tokenizer)
    replies: list[list[int]] = [[]]
    for id_, learned in zip(row.ids.tolist(), row.learned.tolist(), strict=True):
        if learned:
            replies[-1].append(id_)
        elif replies[-1]:
            replies.append([])
    assert [tokenizer.decode(ids, skip_special=False).lstrip() for ids in replies] == [
        "two<|endoftext|>",
        "three three<|endoftext|>",
    ]
    read = tokenizer.decode(row.ids[~row.learned])
    assert "two" not in read
    assert "three" not in read
    assert tokenizer.decode(row.ids).count("be brief") == 1


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_a_completion_is_learned_to_the_token_by_a_slow_reference(kind: str) -> None:
    tokenizer = tokenizers()[kind]
    row = record_row(record("completion", prompt="one and", completion=" two"), Template(), tokenizer)
    inputs, targets = stack([row], 64)
    prompt, answer = tokenizer.encode("one and"), [*tokenizer.encode(" two"), tokenizer.eos_id]
    expected = []
    whole = prompt + answer
    for place in range(len(whole) - 1):
        expected.append(whole[place + 1] if place + 1 >= len(prompt) else IGNORE)
    assert targets[0, : len(expected)].tolist() == expected
    assert inputs[0, : len(expected)].tolist() == whole[:-1]
    assert (targets[0, len(expected) :] == IGNORE).all()
    alone = record_row(record("completion", prompt="", completion=" two"), Template(), tokenizer)
    assert stack([fit(alone, 9)], 64)[1][0, : len(answer) - 1].tolist() == answer[1:], "the first is not predicted"


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_a_question_is_encoded_as_the_chat_that_goes_on_with_its_reply(kind: str) -> None:
    tokenizer = tokenizers()[kind]
    for template in (Template(), OWN):
        for length in (2, 4):
            asked = encode_question(CHAT[:length], template, tokenizer)
            row = record_row(record("chat", messages=CHAT[: length + 1]), template, tokenizer)
            assert row.ids.tolist()[: len(asked)] == asked
            assert not row.learned[: len(asked)][-1]
            assert row.learned[len(asked) :].all()


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_hugging_face_spells_the_chat_to_the_same_ids(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers()[kind]
    tokenizer.save(tmp_path)
    odd = Template(user="“{}”\n😀 ", assistant="A'\": {}\n"), Template(user="“{}”\n", assistant="*{}*\n")
    for template in (Template(), OWN, *odd):
        if kind != "byte" and template.user.startswith("“"):
            continue  # the others do not know these characters
        theirs = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|endoftext|>"
        )
        theirs.chat_template = template.jinja()
        ids = theirs.apply_chat_template(CHAT, return_dict=False)
        assert ids == record_row(record("chat", messages=CHAT), template, tokenizer).ids.tolist()
        asked = theirs.apply_chat_template(CHAT[:4], add_generation_prompt=True, return_dict=False)
        assert asked == encode_question(CHAT[:4], template, tokenizer)


def test_a_reply_ends_where_the_next_user_would_begin() -> None:
    assert Template().stops() == ("\nUser:",)
    assert Template().stops(eos=False) == ("\n", "\nUser:")
    unmarked = Template(user="{}\n", assistant="> {}\n")
    assert unmarked.stops() == ()  # a line end may be a part of the reply
    assert unmarked.stops(eos=False) == ("\n",)


def test_a_template_is_saved_read_and_refused_when_it_is_none(tmp_path: Path) -> None:
    OWN.save(tmp_path)
    assert load_template(tmp_path) == OWN
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert load_template(tmp_path / "checkpoints" / "step-00000001") == OWN
    assert OWN.prompt(CHAT[:2]) == "# be brief\n<- one? ->\n\n>>"
    path = tmp_path / "t.json"
    for text, problem in {
        "[": "cannot be read",
        "[]": "is not an object",
        '{"usr": "{}"}': "no such role: usr; did you mean user",
        '{"user": "hm"}': "user must be text with one {}",
        '{"assistant": " {}"}': "assistant must begin",
    }.items():
        path.write_text(text)
        with pytest.raises(DataError, match=problem):
            read_template(path)
    with pytest.raises(RunError, match="not tuned on chats"):
        load_template(tmp_path.parent / "nowhere")


def test_without_an_end_of_text_the_template_ends_a_reply() -> None:
    pieces = Template().pieces(CHAT[1:3], eos=False)
    assert [(piece.text, piece.learned, piece.ends) for piece in pieces] == [
        ("User: one?\nAssistant:", False, False),
        (" two\n", True, False),
    ]
    starred = Template(assistant="*{}*\n")  # the text after a reply begins like the text before it
    assert starred.pieces(CHAT[1:3], eos=False)[-1].text == "two*\n"
    assert starred.pieces(CHAT[1:5])[2].text == "*\nUser: and?\n*"


def test_a_chat_template_has_no_escape_that_only_python_knows() -> None:
    spelled = Template(user="Käufer “{}”\n", assistant="Verkäufer:\t{}\\\n").jinja()
    assert set(re.findall(r"\\(.)", spelled)) == {"n", "t", "\\"}
    assert "Käufer “" in spelled


GOOD = {"prompt": "a", "completion": "b"}
BAD = {
    "json": ('{"prompt": ', "is not JSON"),
    "list": ("[1]", "is not an object, but list"),
    "fields": (
        {"prompt": "a", "answer": "b"},
        "holds prompt, answer; a record has the fields of one layout: prompt and completion; or",
    ),
    "empty": ({"prompt": "a", "completion": ""}, "completion is empty"),
    "type": ({"prompt": "a", "completion": 4}, "completion is int, not text"),
    "both": ({**GOOD, "messages": []}, "holds prompt, completion, messages; a record has the fields of one"),
    "mixed": (
        {"messages": CHAT},
        r"has messages, but .*x.jsonl:1 has prompt and completion; write every row of a file",
    ),
    "foreign": ({"instruction": "a", "output": "b"}, r"has instruction and output, but .*x.jsonl:1 has prompt and com"),
}
BAD_CHATS = {
    "no list": ("hello", "messages is str, not a list"),
    "no role": ([{"content": "x"}], "message 1 is not an object with role and content"),
    "role": ([{"role": "assistent", "content": "x"}], "message 1 has the role 'assistent'; did you mean assistant"),
    "content": ([{"role": "user", "content": None}], "message 1's content is NoneType, not text"),
    "silent": ([{"role": "user", "content": "x"}], "no message of the assistant"),
    "nothing said": ([*CHAT[:2], {"role": "assistant", "content": ""}], "message 3's content is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_line_is_named(name: str, tmp_path: Path) -> None:
    row, problem = BAD[name]
    with pytest.raises(DataError, match=rf"x\.jsonl:4: {problem}"):
        read_records(write(tmp_path / "x.jsonl", GOOD, "", {**GOOD, "id": 3}, row, GOOD))


BAD_FOREIGN = {
    "no list": ({"conversations": {}}, "conversations is dict, not a list"),
    "no speaker": ({"conversations": [{"text": "x"}]}, "message 1 is not an object with from and value"),
    "speaker": (
        {"conversations": [{"from": "tool", "value": "x"}]},
        "message 1 has the role 'tool'; choose from system, user",
    ),
    "no text": ({"conversations": [{"from": "human", "value": 3}]}, "message 1's value is int, not text"),
    "silent": ({"conversations": [{"from": "human", "value": "x"}]}, "no message of the assistant"),
    "empty": ({"instruction": "a", "input": "b", "output": ""}, "output is empty"),
    "input": ({"instruction": "a", "input": 4, "output": "b"}, "input is int, not text"),
}


def test_foreign_layouts_become_chats(tmp_path: Path) -> None:
    speakers = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": speakers[turn["role"]], "value": turn["content"]} for turn in CHAT]
    alpaca = [
        {"instruction": "Add.", "input": "1 + 1", "output": "2", "text": "x"},
        {"instruction": "Hi", "output": "Ho"},
    ]
    ours, theirs = ([{name: CHAT}] for name in ("messages", "conversations"))
    for rows in (ours, theirs, [{"conversations": turns, "id": 1}]):
        [record] = read_records(write(tmp_path / "chat.json", *rows))
        assert (record.kind, record.fields) == ("chat", {"messages": CHAT})
    alpaca.append({"instruction": "Hi", "input": None, "output": "Ho"})
    path = write(tmp_path / "alpaca.jsonl", *alpaca)
    assert holds_records(str(path), "utf-8", "text"), "also if its rows have a field text"
    asked = [[message["content"] for message in record.fields["messages"]] for record in read_records(path)]
    assert asked == [["Add.\n1 + 1", "2"], ["Hi", "Ho"], ["Hi", "Ho"]]


@pytest.mark.parametrize("name", BAD_FOREIGN)
def test_a_malformed_foreign_row_is_named(name: str, tmp_path: Path) -> None:
    row, problem = BAD_FOREIGN[name]
    with pytest.raises(DataError, match=rf"x\.jsonl:1: {problem}"):
        read_records(write(tmp_path / "x.jsonl", row))


@pytest.mark.parametrize("name", BAD_CHATS)
def test_a_malformed_chat_is_named(name: str, tmp_path: Path) -> None:
    messages, problem = BAD_CHATS[name]
    with pytest.raises(DataError, match=rf"x\.jsonl:2: {problem}"):
        read_records(write(tmp_path / "x.jsonl", {"messages": CHAT}, {"messages": messages}))


def test_records_are_distinguished_from_texts(tmp_path: Path) -> None:
    records = write(tmp_path / "x.jsonl", "", GOOD)
    texts = write(tmp_path / "t.jsonl", {"text": "hello"})
    plain = write(tmp_path / "p.txt", "a text", GOOD)
    assert [holds_records(str(path), "utf-8", "text") for path in (records, texts, plain)] == [True, False, False]
    for name in ("QA.JSONL", "qa.NDJSON", "qa.txt", "qa.json"):
        assert holds_records(str(write(tmp_path / name, GOOD, GOOD)), "utf-8", "text"), name


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["x.json", "x.txt", "x.jsonl", "X.JSON"])
def test_a_list_of_records_is_read_like_lines(tmp_path: Path, name: str, indent: int | None) -> None:
    rows = [{"prompt": f"é {n}", "completion": f"[{n}]"} for n in range(50)]
    (tmp_path / name).write_text(json.dumps(rows, indent=indent))
    assert holds_records(str(tmp_path / name), "utf-8", "text")
    records = read_records(tmp_path / name)
    assert [record.fields for record in records] == rows
    assert records[2].where == f"{tmp_path / name} item 3"
    rows[1]["completion"] = ""
    (tmp_path / name).write_text(json.dumps(rows, indent=indent))
    with pytest.raises(DataError, match=rf"{name} item 2: completion is empty"):
        read_records(tmp_path / name)
    assert not holds_records("stories", "utf-8", "text")
    with pytest.raises(DataError, match="is empty"):
        read_records(write(tmp_path / "e.jsonl", ""))


def test_cleaning_and_unknown_characters(tmp_path: Path) -> None:
    [lower] = read_records(
        write(tmp_path / "x.jsonl", {"prompt": "ONE\r\n", "completion": "Two"}), clean=("lower", "newlines")
    )
    assert lower.fields == {"prompt": "one\n", "completion": "two"}
    row = {"prompt": "ж", "completion": "ж"}
    assert read_records(write(tmp_path / "x.jsonl", row))[0].fields == row
    with pytest.raises(DataError, match=r"x\.jsonl:1: completion is empty after cleaning \(ascii\), so nothing"):
        read_records(tmp_path / "x.jsonl", clean=("ascii",))
    bad = Record("x.jsonl:7", "completion", {"prompt": "one", "completion": "ж"})
    with pytest.raises(TokenizerError, match=r"x\.jsonl:7: character 'ж' at position 0"):
        record_row(bad, Template(), tokenizers()["char"])


def test_cut_records_are_counted_and_reported() -> None:
    tokenizer = CharTokenizer.from_texts([TEXT])
    rows = [
        record_row(
            record("completion", prompt="w" * size, completion=" two ж"[: 4 + size % 2 * 2]), Template(), tokenizer
        )
        for size in (2, 4, 7, 30)
    ]
    console = Console(record=True, width=300, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    _tell_losses(rows, 9, console)
    told = console.export_text()
    assert "cut to fit a row of 8 tokens: the beginning of 2 of 4 records\n" in told
    cut = fit(rows[2], 9)
    assert tokenizer.decode(cut.ids) == "ww two \ufffd"
    _tell_losses(rows, 4, console)
    assert "cut to fit a row of 3 tokens: the beginning of 4 of 4 records, 4 of them within an answer" in (
        console.export_text()
    )


def test_the_split_follows_the_record_not_its_neighbours() -> None:
    records = [record("completion", prompt=str(i), completion="x") for i in range(1000)]
    train, val = split_records(records, 0.2)
    print(f"{len(val)} of 1000 held out at 0.2")
    assert 150 < len(val) < 250
    assert len(train) + len(val) == 1000
    half_train, half_val = split_records(records[::2] * 2, 0.2)
    assert {r.digest for r in half_val} <= {r.digest for r in val}
    assert not {r.digest for r in half_val} & {r.digest for r in half_train}, "copies of a record are in the same split"
    for few in (2, 3):
        train, val = split_records(records[:few], 0.01)
        assert len(val) == 1
        train, val = split_records(records[:few], 0.999)
        assert len(train) == 1
    with pytest.raises(DataError, match="is the only record"):
        split_records(records[:1] * 5, 0.1)


def rows(count: int, longest: int, seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    sizes = random.integers(2, longest + 1, count)
    return [fit(Row(random.integers(1, 99, size), random.random(size) < 0.5), longest) for size in sizes]


def test_packing_keeps_every_token_and_mask_and_wastes_little() -> None:
    given = rows(500, 33)
    packed = pack(given, 33)
    assert all(len(row.ids) <= 33 for row in packed)

    def flat(some: list[Row]) -> list[tuple[int, bool]]:
        return sorted((int(i), bool(m)) for row in some for i, m in zip(row.ids, row.learned, strict=True))

    assert flat(packed) == flat(given)
    room: list[int] = []  # best fit, longest first, by looking at every bin
    for size in sorted((len(row.ids) for row in given), reverse=True):
        fitting = [(left, at) for at, left in enumerate(room) if left >= size]
        if fitting:
            room[min(fitting)[1]] -= size
        else:
            room.append(33 - size)
    least = -(-sum(len(row.ids) for row in given) // 33)
    print(f"packed 500 rows into {len(packed)}, {least} at least")
    assert len(packed) == len(room)
    assert sorted(33 - len(row.ids) for row in packed) == sorted(room)
    sizes = [Row(np.ones(size, dtype=int), np.ones(size, dtype=bool)) for size in (3, 5, 2, 4)]
    assert sorted(len(row.ids) for row in pack(sizes, 7)) == [7, 7]
    learned = sum(int((stack([row], 32)[1] != IGNORE).sum()) for row in packed)
    assert learned == sum(int((stack([row], 32)[1] != IGNORE).sum()) for row in given), (
        "packing does not change the number of targets"
    )


def test_a_batch_depends_on_the_step_alone_and_ranks_share_it_out() -> None:
    source, other = (RowBatches(rows(23, 17), 8, 16, seed=5) for _ in range(2))
    for step in (9, 2, 0, 40):
        inputs, targets = source.batch(step)
        assert torch.equal(inputs, other.batch(step)[0])
        slices = [source.batch(step, rank, 2)[1] for rank in range(2)]
        for part, whole in zip(slices, targets.split(4), strict=True):
            width = part.shape[1]
            assert torch.equal(part, whole[:, :width])
            assert (whole[:, width:] == IGNORE).all()
    seen = sorted(tuple(source._row(number).ids) for number in range(23, 46))
    assert seen == sorted(tuple(row.ids) for row in source.rows), "an epoch visits each row once"
    widths = {source.batch(step)[0].shape[1] for step in range(50)}
    assert widths <= {4, 8, 12, 16}
    assert len(widths) <= WIDTHS
    counted = np.mean([sum(len(source._row(n).ids) - 1 for n in range(k * 8, k * 8 + 8)) for k in range(23)])
    assert source.tokens_per_step == round(counted)


def test_validation_scores_every_learned_token_once() -> None:
    some = rows(21, 17)
    count = sum(int((targets != IGNORE).sum()) for _, targets in row_eval_batches(some, 16, 4))
    assert count == sum(int(row.learned[1:].sum()) for row in some)
