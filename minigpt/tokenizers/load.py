"""Reading tokenizer.json back: the parts of the file say which tokenizer it is.

WordLevel model -> char (unknown="error" if the vocabulary has no unk); BPE without merges or split -> byte;
other byte-level BPE -> bpe with its split pattern, or gpt2 if the merges are OpenAI's. Byte-level BPE files
that others made (GPT-2's, Llama 3's family) load too, with any split expression; what minigpt cannot run to
the same ids (a normalizer, another model, added start tokens) is refused by name.
"""

import json
from pathlib import Path
from typing import Any

from minigpt.errors import TokenizerError
from minigpt.layout import TOKENIZER
from minigpt.tokenizers.base import UNK, Tokenizer
from minigpt.tokenizers.bpe import BPETokenizer
from minigpt.tokenizers.gpt2 import is_gpt2
from minigpt.tokenizers.patterns import PUBLISHED, expression, unspell
from minigpt.tokenizers.simple import ByteTokenizer, CharTokenizer


def load(path: str | Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or of a directory that holds one.

    Raises:
        TokenizerError: no such file, not a tokenizer.json, or one that minigpt cannot run.
    """
    path = Path(path)
    file = path / TOKENIZER if path.is_dir() else path
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokenizerError(
            f"no such tokenizer: {file}; give a tokenizer.json, or make one with `minigpt tokenizer train`"
        ) from None
    except OSError as error:
        raise TokenizerError(f"{file}: cannot be read ({error.strerror or error})") from None
    except ValueError:  # not JSON, or not UTF-8
        raise TokenizerError(f"{file}: not JSON; it is damaged or no tokenizer.json; make or copy it anew") from None
    try:
        return from_tree(tree)
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TokenizerError(
            f"{file}: not a tokenizer.json in the Hugging Face format ({type(error).__name__}: {error}); "
            "make or copy it anew"
        ) from None


def from_tree(tree: dict[str, Any]) -> Tokenizer:
    """The tokenizer that the content of a tokenizer.json describes. Raises TokenizerError, or KeyError and such."""
    post = tree.get("post_processor")
    if tree.get("normalizer"):
        raise TokenizerError(f"its normalizer ({tree['normalizer']['type']}) is not supported by minigpt")
    if post and post["type"] != "ByteLevel":
        raise TokenizerError(f"its post-processor ({post['type']}) is not supported by minigpt")
    model, split = tree["model"], tree["pre_tokenizer"]
    specials = {token["content"]: int(token["id"]) for token in tree["added_tokens"]}
    if model["type"] == "WordLevel":
        tokenizer: Tokenizer = CharTokenizer(
            [word for word in model["vocab"] if word not in specials],
            unknown="token" if UNK in model["vocab"] else "error",
        )
    elif model["type"] == "BPE" and not model["merges"] and split["type"] == "ByteLevel" and not split["use_regex"]:
        tokenizer = ByteTokenizer()
    elif model["type"] == "BPE":
        return _bpe(model, _pattern(split), specials)
    else:
        raise TokenizerError(f"its model ({model['type']}) is not supported by minigpt")
    # Their ids follow from their characters, so any other numbering is somebody else's file.
    theirs = model["vocab"] | specials
    ours = tokenizer.to_tree()
    if theirs != ours["model"]["vocab"] or split != ours["pre_tokenizer"]:
        raise TokenizerError(f"it is not a {tokenizer.kind} tokenizer as minigpt writes it; make it anew")
    return tokenizer


def _bpe(model: dict[str, Any], pattern: str, specials: dict[str, int]) -> BPETokenizer:
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise TokenizerError(f"its BPE option {option} is not supported by minigpt")
    vocab: dict[str, int] = model["vocab"]
    pieces = [b""] * (1 + max([*vocab.values(), *specials.values()]))
    for word, id_ in vocab.items():
        if word not in specials:
            pieces[id_] = unspell(word)
    pairs = (item.split(" ") if isinstance(item, str) else item for item in model["merges"])
    merges = [(vocab[left], vocab[right]) for left, right in pairs]
    tokenizer = BPETokenizer(pieces, merges, pattern, specials)
    if is_gpt2(tokenizer):
        tokenizer.kind = "gpt2"
    return tokenizer


def _pattern(split: dict[str, Any]) -> str:
    """The name, or the expression, of the split that a pre_tokenizer makes."""
    parts = split["pretokenizers"] if split["type"] == "Sequence" else [split]
    *before, last = parts
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or any(part["type"] != "Split" for part in before):
        raise TokenizerError("its pre-tokenizer is not a split before byte-level; minigpt cannot run it")
    if not before and last["use_regex"]:
        return "gpt2"
    if len(before) != 1 or last["use_regex"] or before[0]["behavior"] != "Isolated" or before[0]["invert"]:
        raise TokenizerError("its pre-tokenizer is not one split before byte-level; minigpt cannot run it")
    text = before[0]["pattern"]["Regex"]
    return next((name for name, published in PUBLISHED.items() if text in (published, expression(name))), text)
