"""Test tokenizers of Llama's family: the ids of llama2.c's own rule, and of Hugging Face `tokenizers` on our files."""

import random
import struct
from pathlib import Path

import pytest

from minigpt.errors import TokenizerError
from minigpt.tokenizers import load
from minigpt.tokenizers.gguf import from_gguf, to_gguf
from minigpt.tokenizers.sentencepiece import SentencePieceTokenizer, from_llama2c

WORDS = "the cat sat on a mat and then there was a little girl named Lily who loved to play outside . , ! ?"
LETTERS = "abcdefghijklmnopqrstuvwxyzLTW.,!?'é日 \n"
TEXTS = [
    "",
    " ",
    "the cat",
    "  the  cat \n sat",
    "Zoë’s “cats” 🙂",
    "<0x0A>",
    "<s></s>",
    "▁a▁▁b",
    "caté日本",
    "a" * 500,
]


def write(path: Path, change: bytes = b"", gaps: bool = True) -> tuple[Path, list[str], list[float]]:
    """A tokenizer.bin as llama2.c's tokenizer.py writes it, its tokens and their scores."""
    draw = random.Random(2)
    spaced = " " + WORDS
    made = {spaced[i : i + n] for i in range(len(spaced)) for n in (2, 3, 4, 5)}
    made = (
        {text for text in made if len(text) > 1 and " " not in text[1:]}
        | {"  ", "    "}
        | ({"t t", "a m"} if gaps else set())
    )
    joined = sorted(sorted(made), key=lambda text: (len(text), draw.random()))  # a set's order is random
    texts = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *joined, *LETTERS]
    scores = [0.0] * 259 + [-float(i) for i in range(len(joined) + len(LETTERS))]
    with path.open("wb") as file:
        file.write(struct.pack("<I", max(map(len, texts))))
        for text, score in zip(texts, scores, strict=True):
            file.write(struct.pack("<fi", score, len(text.encode())) + text.encode())
    return path, texts, scores


def by_the_rule(texts: list[str], scores: list[float], text: str) -> list[int]:
    """The rule of llama2.c's `encode`: join the pair with the best score (of equal ones the first), again and again."""
    known = {piece: id_ for id_, piece in enumerate(texts) if id_ >= 259}
    ids: list[int] = []
    for char in " " + text.replace("▁", " ") if text else "":
        ids += [known[char]] if char in known else [byte + 3 for byte in char.encode()]
    while True:
        best = (-1e10, -1, -1)
        for i in range(len(ids) - 1):
            id_ = known.get(texts[ids[i]] + texts[ids[i + 1]], -1)
            if id_ >= 0 and scores[id_] > best[0]:
                best = (scores[id_], i, id_)
        if best[1] < 0:
            return ids
        ids[best[1] : best[1] + 2] = [best[2]]


def random_texts(count: int) -> list[str]:
    draw = random.Random(1)
    some = [*WORDS.split(), " ", "  ", "\n", "é", "日", "🙂", "t", "a", "LL"]
    return [*TEXTS, *("".join(draw.choices(some, k=draw.randint(1, 30))) for _ in range(count))]


@pytest.mark.parametrize("gaps", [False, True])
def test_ids_are_those_of_llama2c_and_of_hugging_face(gaps: bool, tmp_path: Path) -> None:
    path, texts, scores = write(tmp_path / "tokenizer.bin", gaps=gaps)
    tokenizer = from_llama2c(path)
    tokenizer.save(tmp_path)
    again = load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint and again.vocab_size == len(texts)
    theirs = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    scored = from_gguf({k: v for k, v in to_gguf(tokenizer).items() if k != "tokenizer.huggingface.json"})
    for text in random_texts(200):
        ids = tokenizer.encode(text)
        assert ids == by_the_rule(texts, scores, text), text
        assert ids == again.encode(text) == scored.encode(text)
        if "<s>" not in text:
            assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(ids) == (" " + text.replace("▁", " ") if text else "")
    assert tokenizer.eos_id == 1 and scored.eos_id == 1


def test_a_tokenizer_bin_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path, _, _ = write(tmp_path / "tokenizer.bin")
    whole = path.read_bytes()
    for content in (
        b"", whole[:-1], whole[:3000], struct.pack("<Ifi", 9, 0.0, 2**31 - 1), struct.pack("<Ifi", 9, 0.0, -5),
        whole[:4] + struct.pack("<fi", 0.0, 1) + b"\xff", whole.replace(b"<0x0B>", b"<0x0A>"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.bin: "):
            from_llama2c(path)


def test_a_token_too_long_to_be_cut_at_every_place_is_refused() -> None:
    texts = ["", "", *(f"<0x{byte:02X}>" for byte in range(256)), "a" * 1025]
    with pytest.raises(TokenizerError, match="more than 1,024 characters"):
        SentencePieceTokenizer(texts, {}, {"<|unk|>": 0, "<|endoftext|>": 1})
