"""Test GPT-2's tokenizer against the published encoder; its files are downloaded once, checked, and used offline."""

import functools
import http.server
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import regex
import tiktoken
import tiktoken.load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tokenizers import ADVERSARIAL, TEXT, unicode_text
from tokenizers import ByteLevelBPETokenizer
from tokenizers import Tokenizer as Theirs

from minigpt.config import TokenizerConfig, load_config
from minigpt.errors import TokenizerError
from minigpt.runs.resolve import resolve_vocabulary
from minigpt.tokenizers import BPETokenizer, build, gpt2, gpt2_tokenizer, load
from minigpt.tokenizers.patterns import PUBLISHED

CLOSED = "http://127.0.0.1:9/nothing/"

tricky_text = st.text(st.sampled_from(" \t\n\r\u3000\x1c\x85'sLLa1.中🦊\u0301\u200d"), max_size=40)


@functools.cache
def ours_from(_: Path) -> BPETokenizer:
    return gpt2_tokenizer()


@functools.cache
def published(folder: Path) -> tuple[Theirs, tiktoken.Encoding]:
    """Built by Hugging Face's and by tiktoken's own readers of OpenAI's two files."""
    vocab, merges = str(folder / "gpt2-bpe" / "encoder.json"), str(folder / "gpt2-bpe" / "vocab.bpe")
    theirs = ByteLevelBPETokenizer(vocab, merges, add_prefix_space=False)
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(vocab_bpe_file=merges, encoder_json_file=vocab)
    eos = {"<|endoftext|>": 50256}
    return theirs, tiktoken.Encoding("gpt2", pat_str=PUBLISHED["gpt2"], mergeable_ranks=ranks, special_tokens=eos)


@pytest.fixture(autouse=True)
def _no_cache_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("text", ADVERSARIAL)
def test_ids_equal_the_published_encoders_on_adversarial_text(mirror: Path, text: str) -> None:
    theirs, plain = published(mirror)
    ids = ours_from(mirror).encode(text)
    assert ids == plain.encode_ordinary(text)
    assert ids == ours_from(mirror).encode_array(text).tolist() == ours_from(mirror).encode_reference(text)
    if "<|endoftext|>" not in text:
        assert ids == theirs.encode(text).ids
    assert ours_from(mirror).decode(ids) == text == plain.decode(ids)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(unicode_text, tricky_text))
def test_ids_equal_the_published_encoders_on_any_text(mirror: Path, text: str) -> None:
    theirs, plain = published(mirror)
    ids = ours_from(mirror).encode(text)
    assert ids == plain.encode_ordinary(text) == theirs.encode(text).ids == ours_from(mirror).encode_reference(text)


def test_ids_equal_transformers_gpt2_tokenizer(mirror: Path, tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    shutil.copy(mirror / "gpt2-bpe" / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(mirror / "gpt2-bpe" / "vocab.bpe", tmp_path / "merges.txt")
    theirs = GPT2Tokenizer.from_pretrained(str(tmp_path))
    for text in ADVERSARIAL:
        assert ours_from(mirror).encode(text, special=True) == theirs.encode(text)


def test_it_has_the_published_sizes_and_ids(mirror: Path) -> None:
    ours = ours_from(mirror)
    assert (ours.kind, ours.vocab_size, ours.eos_id, ours.pad_id) == ("gpt2", 50257, 50256, None)
    assert ours.special_tokens == {"<|endoftext|>": 50256}
    assert ours.encode("Hello world") == [15496, 995]
    assert ours.token_bytes(50256) == b""


def test_saved_it_loads_as_gpt2_and_in_hugging_face_to_the_same_ids(mirror: Path, tmp_path: Path) -> None:
    ours = ours_from(mirror)
    ours.save(tmp_path)
    again = load(tmp_path)
    assert (again.kind, again.fingerprint) == ("gpt2", ours.fingerprint)
    theirs = Theirs.from_file(str(tmp_path / "tokenizer.json"))
    for text in ADVERSARIAL:
        ids = ours.encode(text, special=True)
        assert ids == again.encode(text, special=True) == theirs.encode(text).ids
    tree = json.loads(ours.to_json())
    tree["model"]["merges"] = [word.split(" ") for word in tree["model"]["merges"]]  # the newer spelling of the format
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    assert load(tmp_path).fingerprint == ours.fingerprint


def test_ids_equal_the_published_encoders_on_wikitext_and_shakespeare(mirror: Path) -> None:
    _, plain = published(mirror)
    for name in ("wikitext-2/valid.txt", "tinyshakespeare/input.txt"):
        text = (mirror / name).read_text(encoding="utf-8")
        assert ours_from(mirror).encode(text) == plain.encode_ordinary(text)


@pytest.mark.slow
def test_ids_equal_the_published_encoders_on_the_whole_of_wikitext_train(mirror: Path) -> None:
    theirs, plain = published(mirror)
    text = (mirror / "wikitext-2" / "train.txt").read_text(encoding="utf-8")
    ids = ours_from(mirror).encode_array(text).tolist()
    assert ids == plain.encode_ordinary(text)
    assert ids == theirs.encode(text).ids
    merge_word = functools.cache(ours_from(mirror).merge_word)
    assert ids == [id_ for word in regex.findall(PUBLISHED["gpt2"], text) for id_ in merge_word(word.encode())]


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, in silence."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served instead of OpenAI's address; no mirror, and an empty cache."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Server, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(gpt2, "ADDRESS", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.delenv("MINIGPT_DATA", raising=False)
        monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
        yield folder
        server.shutdown()


def test_the_files_are_fetched_once_and_used_offline_after_that(
    mirror: Path, address: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in gpt2.SHA256:
        shutil.copy(mirror / "gpt2-bpe" / name, address / name)
    fetched = gpt2_tokenizer()
    assert fetched.encode(TEXT) == ours_from(mirror).encode(TEXT)
    assert sorted(path.name for path in (tmp_path / "cache/datasets/gpt2-bpe").glob("*.*")) == sorted(gpt2.SHA256)
    monkeypatch.setattr(gpt2, "ADDRESS", CLOSED)
    assert gpt2_tokenizer().fingerprint == fetched.fingerprint


def test_a_fetched_file_that_is_altered_is_refused_and_not_kept(address: Path, tmp_path: Path) -> None:
    (address / "encoder.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"encoder\.json: the file has sha256"):
        gpt2_tokenizer()
    assert not list((tmp_path / "cache/datasets/gpt2-bpe").glob("*.json"))


def test_a_file_that_the_address_does_not_have_is_an_error(address: Path) -> None:
    with pytest.raises(TokenizerError, match=r"cannot be fetched \(.*MINIGPT_DATA"):
        gpt2_tokenizer()


def test_an_altered_file_in_the_mirror_is_refused_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2-bpe").mkdir()
    (tmp_path / "gpt2-bpe" / "encoder.json").write_text("{}")
    monkeypatch.setenv("MINIGPT_DATA", str(tmp_path))
    with pytest.raises(TokenizerError, match=f"{tmp_path}.*is not the published"):
        gpt2_tokenizer()


def test_without_network_and_mirror_the_error_names_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpt2, "ADDRESS", CLOSED)
    monkeypatch.delenv("MINIGPT_DATA", raising=False)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    with pytest.raises(
        TokenizerError, match=rf"{CLOSED}encoder\.json: cannot be fetched.*MINIGPT_DATA.*another tokenizer"
    ) as error:
        build(TokenizerConfig(kind="gpt2"), [])
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):  # auto then uses char, and says so
        fallback = build(TokenizerConfig(kind="auto", unknown="error"), ["abc"])
    assert (fallback.kind, fallback.vocab_size) == ("char", 4)
    assert "using char instead of gpt2" in caplog.text
    config = resolve_vocabulary(load_config(None, {"tokenizer.kind": "auto"}), fallback)
    assert config.tokenizer.kind == "char", "config.yaml repeats the run when GPT-2's files have come"


def test_auto_is_gpt2_where_it_can_be_had(mirror: Path) -> None:
    assert build(TokenizerConfig(kind="auto"), []).kind == "gpt2"
