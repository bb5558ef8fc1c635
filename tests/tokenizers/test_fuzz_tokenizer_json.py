"""Test that a randomly changed tokenizer.json is refused or gives the ids of the `tokenizers` library."""

import copy
import json
from collections import Counter
from pathlib import Path

import pytest
from fuzz_watch import Watch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mostly_slow import mostly_slow

from minigpt.errors import TokenizerError
from minigpt.tokenizers import BPETokenizer, WordTokenizer, load

library = pytest.importorskip("tokenizers")
TEXT = "the cat and the dog don't sit, they're 1234 strong;\n\n  Zoë's naïve “tea” costs $9.50 <|endoftext|> " * 20
TREE = BPETokenizer.train([TEXT], 320).to_tree()
WORDS = WordTokenizer.from_texts([TEXT]).to_tree()
PATTERNS = (
    r"\p{L}+", r"\w+|\s+", "(", "x*", r"[a-z]+", r"\s+|\S+", r"(?=a)", r"(\p{L})+|\s", "gpt2", r"\p{N}|[^\p{N}]+", "'t",
    r"(?i:'s|'t)| ?\p{L}+", r"^a", "a{1,2}+", r"\p{L}++", r"[[:alpha:]]+", r"\p{L}+?", "a|", r"(?R)", r"(?i:ss)", ".",
    r" ?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+", r"[^\r\n\p{L}\p{N}]?\p{L}+", "[a-", "\\", r"\b", "(?m)a.b",
)  # fmt: skip
VALUES = st.sampled_from(
    [None, True, False, 0, 1, -1, 10**10, 2.5, "", "a", "the", "NFC", [], {}, [1], {"type": "NFC"}]
)
TEXTS = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(TEXT.split()), max_size=8).map(" ".join))
COUNTS: Counter[str] = Counter()


def split_by(pattern: str) -> dict[str, object]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


@st.composite
def trees(draw):
    tree = copy.deepcopy(TREE)
    kind = draw(st.sampled_from(["split", "field", "merges", "added", "nfc", "model", "long", "words"]))
    if kind in ("split", "nfc"):
        tree["pre_tokenizer"] = split_by(draw(st.sampled_from(PATTERNS)))
    if kind in ("nfc", "long"):
        tree["normalizer"] = {"type": "NFC"}
    if kind == "words":
        tree = copy.deepcopy(WORDS)
        vocab = tree["model"]["vocab"]
        place = draw(st.sampled_from([tree, tree["model"], vocab]))
        place[draw(st.sampled_from(sorted(place)))] = draw(st.one_of(VALUES, st.integers(0, len(vocab))))
    if kind == "field":
        tree[draw(st.sampled_from(sorted(tree)))] = draw(VALUES)
    if kind == "model":
        tree["model"][draw(st.sampled_from(sorted(tree["model"])))] = draw(VALUES)
    if kind == "merges":  # the same tokens, made of other parts
        merges = tree["model"]["merges"]
        place = draw(st.integers(0, len(merges) - 1))
        whole = merges[place].replace(" ", "")
        cut = draw(st.integers(1, len(whole) - 1))
        merges[place] = f"{whole[:cut]} {whole[cut:]}"
    if kind == "added":
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        token = {
            "content": draw(st.sampled_from(["<a>", "the", "cat and", "“", "é", ""])),
            "id": draw(st.integers(318, 322)),
            **flags,
        }
        token[draw(st.sampled_from(sorted(token)))] = draw(VALUES)
        tree["added_tokens"].append(token)
    return tree


def compare(file: Path, tree: dict, text: str) -> None:
    file.write_text(json.dumps(tree))
    try:
        ours = load(file)
    except TokenizerError as error:
        assert "\n" not in str(error)
        COUNTS["refused"] += 1
        return
    try:
        theirs = library.Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 - the library raises no other class
        COUNTS["only minigpt reads it"] += 1
        return
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, special=True) == ids
    theirs.encode_special_tokens = True
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    every = [*ids, *range(ours.vocab_size)[-4:]]
    for skip in (True, False) if tree["decoder"] else ():
        assert ours.decode(every, skip) == theirs.decode(every, skip_special_tokens=skip)
    COUNTS["equal"] += 1


@pytest.mark.parametrize("examples", mostly_slow([300, 6000]))
def test_a_changed_file_is_refused_or_gives_the_same_ids(examples, tmp_path):
    COUNTS.clear()
    watch = Watch()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(tree=trees(), text=TEXTS)
    def run(tree, text):
        with watch.example():
            compare(tmp_path / "tokenizer.json", tree, text)

    run()
    watch.end(f"tokenizer.json: {dict(COUNTS)}")
    assert COUNTS["equal"] > examples // 20 and COUNTS["refused"] > examples // 20


@pytest.mark.parametrize("nfc", [False, True])
@pytest.mark.parametrize("content", ["<think>", "cat and", "“tea”", "th", "<|endoftext|>x"])
def test_an_added_token_is_found_and_shown_as_the_library_does(content, nfc, tmp_path):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tree = TREE | {"added_tokens": [*TREE["added_tokens"], {"id": 320, "content": content, **flags}]}
    tree["normalizer"] = {"type": "NFC"} if nfc else None
    COUNTS.clear()
    compare(tmp_path / "tokenizer.json", tree, text := f"{TEXT}{content}e\u0301{content} {content}")
    assert COUNTS["equal"] == 1
    tokenizer = load(tmp_path)
    assert tokenizer.encode_array(text).tolist() == tokenizer.encode(text) and 320 in tokenizer.encode(text)
    assert tokenizer.token_bytes(320) == content.encode() and tokenizer.decode([320]) == content
    tokenizer.save(tmp_path / "again.json")
    assert load(tmp_path / "again.json").encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("change", [{"content": "é"}, {"normalized": True}])
def test_an_added_token_that_would_be_shown_or_found_otherwise_is_refused(change, tmp_path):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    token = {"id": 320, "content": "<a>", **flags} | change
    tree = TREE | {"added_tokens": [*TREE["added_tokens"], token], "normalizer": {"type": "NFC"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(TokenizerError, match="its added token"):
        load(tmp_path)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_expression_of_others_drops_no_text(pattern, tmp_path):
    for text in ("don't stop 12ab\n\n x", "ſs 'T ﬆ ߀ Ⅷ a\u0301", TEXT):
        compare(tmp_path / "tokenizer.json", TREE | {"pre_tokenizer": split_by(pattern)}, text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "not JSON"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("IQ== 0\nIg== 1\nIw== 2\n", "tokenizer.json of the same model"),
        (json.dumps(TREE | {"added_tokens": [{"content": "<a>", "id": 10**10}]}), "10000000000"),
        (json.dumps(TREE | {"decoder": {"type": "Fuse"}}), "its decoder is not byte-level"),
    ],
)
def test_what_is_no_tokenizer_is_said(content, words, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=words):
        load(tmp_path)


def test_vocab_and_merges_alone_are_told_how_to_become_a_file(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(TokenizerError, match="save_pretrained"):
        load(tmp_path)
