"""Read a tokenizer.json. The parts of the file tell which kind of tokenizer it is.

    WordLevel model              word if there is a normalizer, else char (unknown="error" if there is no unk)
    BPE without merges or split  byte
    other byte-level BPE         bpe with its split pattern, or gpt2 if the merges are OpenAI's

Byte-level BPE files made by others (GPT-2's, Llama 3's family) load too, with any split expression. If minigpt would
give other ids than the file's tokenizer (a normalizer, another model, added start tokens), it refuses the file and
names the part.
"""

import re
from pathlib import Path
from typing import Any

from minigpt.errors import TokenizerError
from minigpt.files import parse_json, read_text
from minigpt.layout import CONFIG, TOKENIZER
from minigpt.tokenizers.base import EOS, UNK, Tokenizer
from minigpt.tokenizers.bpe import BPETokenizer
from minigpt.tokenizers.gpt2 import is_gpt2
from minigpt.tokenizers.patterns import DIGITS, PUBLISHED, byte_chars, byte_level, check, expression, unspell
from minigpt.tokenizers.sentencepiece import from_model
from minigpt.tokenizers.simple import ByteTokenizer, CharTokenizer
from minigpt.tokenizers.words import from_model as words_from_model

TIKTOKEN = re.compile(r"(?:[A-Za-z0-9+/]+=* \d+\r?\n){2}")
"""The beginning of a tiktoken file: each line is a token's bytes in base64, and its rank."""


def load(path: str | Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json; `path` is the file or its directory.

    Raises:
        TokenizerError: no such file, not a tokenizer.json, or minigpt cannot run it.
    """
    path = Path(path)
    file = path / TOKENIZER if path.is_dir() else path
    try:
        text = read_text(file)
        if text.startswith("version https://git-lfs"):
            raise TokenizerError(f"{file}: a git-lfs pointer, not the tokenizer; get it with `git lfs pull`")
        if TIKTOKEN.match(text):
            raise TokenizerError(
                f"{file}: a file of tiktoken, which does not say how text is split, nor its special tokens; give the "
                "tokenizer.json of the same model"
            )
        tree = parse_json(text)
    except FileNotFoundError:
        if (file.parent / "vocab.json").is_file() and (file.parent / "merges.txt").is_file():
            raise TokenizerError(
                f"{file.parent}: has vocab.json and merges.txt but no tokenizer.json; make one with transformers: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            ) from None
        fix = "give a tokenizer.json, or make one with `minigpt tokenizer train`"
        if any((path / name).is_file() for name in (CONFIG, "config.json")):  # a model, which has learned its own ids
            fix = "put back the tokenizer.json of this model"
        raise TokenizerError(f"no such tokenizer: {file}; {fix}") from None
    except OSError as error:
        raise TokenizerError(f"{file}: cannot be read ({error.strerror or error})") from None
    except ValueError:  # not JSON, or not UTF-8
        raise TokenizerError(f"{file}: not JSON, so not a whole tokenizer.json; make or copy it again") from None
    try:
        return from_tree(tree)
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TokenizerError(
            f"{file}: not a tokenizer.json in the Hugging Face format ({type(error).__name__}: {error}); "
            "make or copy it again"
        ) from None


def from_tree(tree: dict[str, Any]) -> Tokenizer:
    """The tokenizer described by a tokenizer.json's content. Raises TokenizerError, or KeyError and the like."""
    post, normalizer = tree.get("post_processor"), tree.get("normalizer")
    if tree["model"].get("byte_fallback") and tree.get("pre_tokenizer") is None:
        return _sentencepiece(tree)
    if tree["model"]["type"] == "WordLevel" and normalizer:
        return words_from_model(tree)
    if normalizer and normalizer != {"type": "NFC"}:
        raise TokenizerError(f"its normalizer ({normalizer['type']}) is not supported by minigpt")
    if post and post["type"] != "ByteLevel":
        raise TokenizerError(f"its post-processor ({post['type']}) is not supported by minigpt")
    for option in ("truncation", "padding"):
        if tree.get(option):
            raise TokenizerError(f"its {option} is not supported by minigpt; set it to null")
    model, split = tree["model"], tree["pre_tokenizer"]
    specials = {token["content"]: token["id"] for token in tree["added_tokens"]}
    if model["type"] == "WordLevel":
        tokenizer: Tokenizer = CharTokenizer(
            [word for word in model["vocab"] if word not in specials],
            unknown="token" if UNK in model["vocab"] else "error",
            ends=EOS in specials,
        )
    elif (
        model["type"] == "BPE"
        and not model["merges"]
        and split["type"] == "ByteLevel"
        and split.get("use_regex") is False
    ):
        tokenizer = ByteTokenizer()
    elif model["type"] == "BPE":
        if (tree.get("decoder") or {}).get("type", "ByteLevel") != "ByteLevel":  # without one, Hugging Face shows bytes
            raise TokenizerError("its decoder is not byte-level; minigpt would show other text")
        _check_added(model["vocab"], tree["added_tokens"], bool(normalizer))
        return _bpe(model, _pattern(split), tree["added_tokens"], bool(normalizer))
    else:
        raise TokenizerError(f"its model ({model['type']}) is not supported by minigpt")
    # minigpt's char and byte tokenizers have fixed ids; a file with other ids was not written by minigpt.
    theirs = model["vocab"] | specials
    ours = tokenizer.to_tree()
    same = all(model.get(name) == value for name, value in ours["model"].items())
    same = same and all(token.get("special", True) for token in tree["added_tokens"])
    if normalizer or theirs != ours["model"]["vocab"] or split != ours["pre_tokenizer"] or not same:
        raise TokenizerError(f"it is not a {tokenizer.kind} tokenizer as minigpt writes it; make it again")
    return tokenizer


def _sentencepiece(tree: dict[str, Any]) -> Tokenizer:
    """A tokenizer of Llama's family. Raises TokenizerError if Hugging Face would encode or decode differently."""
    tokenizer = from_model(tree)
    ours = tokenizer.to_tree()
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding", "added_tokens"):
        if tree.get(part) != ours[part]:
            raise TokenizerError(f"its {part} is not as minigpt writes it for byte fallback; minigpt cannot run it")
    if {**ours["model"], **tree["model"]} != ours["model"]:
        raise TokenizerError("its model has other merges than its vocabulary gives; minigpt cannot run it")
    return tokenizer


def _check_added(vocab: dict[str, int], added: list[dict[str, Any]], nfc: bool) -> None:
    """Raises TokenizerError for ids with gaps, or added tokens that we cannot treat as Hugging Face does."""
    specials: dict[str, int] = {}
    count = len(vocab)  # different names so far; counting them again for each token would take minutes
    for token in added:
        name, id_ = token["content"], token["id"]
        follows = vocab.get(name, count)
        if not isinstance(name, str) or not name or name in specials or id_ != follows:
            raise TokenizerError(f"its added token {name!r} has the id {id_!r}, not {follows}; make it again")
        if flag := next((flag for flag in ("single_word", "lstrip", "rstrip") if token.get(flag)), None):
            raise TokenizerError(f"its added token {name!r} has {flag}, which is not supported by minigpt")
        if not name.isascii() and all(char in byte_chars() for char in name):  # Hugging Face shows other bytes
            raise TokenizerError(f"its added token {name!r} spells bytes; minigpt cannot run it")
        if nfc and token.get("normalized", True):
            raise TokenizerError(f"its added token {name!r} is normalized; minigpt cannot run it with a normalizer")
        specials[name] = id_
        count += name not in vocab
    if len({bool(token.get("normalized", True)) for token in added}) > 1:
        raise TokenizerError("some of its added tokens are normalized and some are not; minigpt cannot run it")
    ids = [*(vocab | specials).values()]
    if any(type(id_) is not int for id_ in ids) or sorted(ids) != list(range(len(ids))):
        raise TokenizerError("its ids are not 0, 1, 2 and so on without a hole; minigpt cannot run it")


def _bpe(model: dict[str, Any], pattern: str, added: list[dict[str, Any]], nfc: bool) -> BPETokenizer:
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise TokenizerError(f"its BPE option {option} is not supported by minigpt")
    vocab: dict[str, int] = model["vocab"]
    specials = {token["content"]: token["id"] for token in added if token.get("special", True)}
    others = {token["content"]: token["id"] for token in added if not token.get("special", True)}
    pieces = [b""] * (1 + max([*vocab.values(), *specials.values(), *others.values()]))
    for word, id_ in vocab.items():
        if word not in specials and word not in others:
            pieces[id_] = unspell(word)
    pairs = (item.split(" ") if isinstance(item, str) else item for item in model["merges"])
    merges = [(vocab[left], vocab[right]) for left, right in pairs]
    tokenizer = BPETokenizer(pieces, merges, pattern, specials, nfc=nfc, added_tokens=others)
    if not nfc and is_gpt2(tokenizer):
        tokenizer.kind = "gpt2"
    elif piece := tokenizer.unreached():
        raise TokenizerError(f"its merges do not make its token {piece!r}; minigpt cannot run it")
    return tokenizer


def _pattern(split: dict[str, Any]) -> str:
    """The name or the expression of a pre_tokenizer's split."""
    parts = split["pretokenizers"] if split["type"] == "Sequence" else [split]
    *before, last = parts
    if before == [{"type": "Digits", "individual_digits": True}] and last == byte_level(use_regex=True):
        return DIGITS
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or any(part["type"] != "Split" for part in before):
        raise TokenizerError("its pre-tokenizer is not a split before byte-level; minigpt cannot run it")
    by_gpt2 = last.get("use_regex", True)  # older files leave it out
    if not before and by_gpt2:
        return "gpt2"
    if len(before) != 1 or by_gpt2 or before[0]["behavior"] != "Isolated" or before[0]["invert"]:
        raise TokenizerError("its pre-tokenizer is not one split before byte-level; minigpt cannot run it")
    text = before[0]["pattern"]["Regex"]
    name = next(
        (name for name, published in PUBLISHED.items() if text != name and text in (published, expression(name))), None
    )
    if name is None:
        check(text)
    return name or (f"(?:{text})" if text in PUBLISHED else text)  # "gpt2" may be an expression too
