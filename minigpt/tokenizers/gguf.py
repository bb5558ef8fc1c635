"""Write a tokenizer as settings of a GGUF file, and read it back: llama.cpp's "gpt2" (byte-level BPE) and "llama".

Notable choices:
- llama.cpp knows split patterns only by name (`tokenizer.ggml.pre`). PRE lists the names whose pieces equal ours. A
  tokenizer with another pattern is refused, since llama.cpp would cut its text at other places.
- A byte tokenizer becomes a BPE without merges. A character tokenizer becomes a BPE whose merges only join the bytes of
  each character. llama.cpp drops a character that is not in the vocabulary, where we write <|unk|>.
- `tokenizer.huggingface.json` also holds our own tokenizer.json, so that reading gives back the same tokenizer.
"""

from typing import Any

from minigpt.errors import TokenizerError
from minigpt.files import parse_json
from minigpt.tokenizers.base import BOS, EOS, UNK, Tokenizer
from minigpt.tokenizers.bpe import BPETokenizer
from minigpt.tokenizers.load import from_tree
from minigpt.tokenizers.patterns import DIGITS, PUBLISHED, byte_level, pre_tokenizer_tree, spell
from minigpt.tokenizers.sentencepiece import BYTE, SentencePieceTokenizer, from_scores
from minigpt.tokenizers.simple import CharTokenizer, bpe_model
from minigpt.tokenizers.words import WordTokenizer

QWEN2 = PUBLISHED["gpt4"].replace(r"\p{N}{1,3}", r"\p{N}")
PRE = {"gpt2": "gpt-2", "gpt4": "llama-bpe", QWEN2: "qwen2", DIGITS: "smollm"}
"""Our pattern to llama.cpp's name for the same pattern."""
_ALSO = {"llama3": "gpt4", "llama-v3": "gpt4", "dbrx": "gpt4", "smaug-bpe": "gpt4"}
_NO_SPLIT = "qwen2"
"""For tokenizers without a split; with this name llama.cpp shows text unchanged (gpt-2 drops a space before a dot)."""
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_DEFAULT_END = 11
"""llama.cpp's end of text for a file that names none."""
_KEY = "tokenizer.ggml."
_JSON = "tokenizer.huggingface.json"


def to_gguf(tokenizer: Tokenizer) -> dict[str, Any]:
    """The settings that describe a tokenizer. Raises TokenizerError if llama.cpp has no such tokenizer."""
    if isinstance(tokenizer, WordTokenizer):
        raise TokenizerError(
            "llama.cpp has no tokenizer of whole words; export to hf, onnx or page, or train with --tokenizer.kind bpe"
        )
    if tokenizer.eos_id is None and not isinstance(tokenizer, SentencePieceTokenizer):
        raise TokenizerError(
            f"the tokenizer has no {EOS}, so llama.cpp would end a text at the token with id {_DEFAULT_END}; "
            "export to hf, onnx or page"
        )
    named = {id_: name for name, id_ in (tokenizer.special_tokens | tokenizer.added_tokens).items()}
    tokens = [named.get(id_) or spell(tokenizer.token_bytes(id_)) for id_ in range(tokenizer.vocab_size)]
    types = [_NORMAL] * len(tokens)
    for id_ in named:
        types[id_] = _CONTROL if id_ in tokenizer.special_tokens.values() else _USER
    if tokenizer.unk_id is not None:
        types[tokenizer.unk_id] = _UNKNOWN
    if isinstance(tokenizer, SentencePieceTokenizer):
        tokens, places = tokenizer.texts(), tokenizer.places()
        types = [
            _BYTE if kind == _NORMAL and BYTE.fullmatch(text) else kind
            for kind, text in zip(types, tokens, strict=True)
        ]
        kind = {f"{_KEY}model": "llama", f"{_KEY}scores": [float(-places.get(text, len(places))) for text in tokens]}
    else:
        kind = {f"{_KEY}model": "gpt2", f"{_KEY}pre": _pre(tokenizer), f"{_KEY}merges": _merges(tokenizer)}
    settings: dict[str, Any] = {
        **kind,
        f"{_KEY}tokens": tokens,
        f"{_KEY}token_type": types,
        f"{_KEY}add_bos_token": False,
        f"{_KEY}add_eos_token": False,
    }
    eos = tokenizer.eos_id
    ids = {"eos": eos, "bos": eos if tokenizer.bos_id is None else tokenizer.bos_id, "padding": tokenizer.pad_id}
    ids["unknown"] = tokenizer.unk_id
    settings |= {f"{_KEY}{name}_token_id": id_ for name, id_ in ids.items() if id_ is not None}
    return settings | {_JSON: tokenizer.to_json()}


def _pre(tokenizer: Tokenizer) -> str:
    if not isinstance(tokenizer, BPETokenizer):
        return _NO_SPLIT
    if tokenizer.nfc:
        raise TokenizerError(
            "llama.cpp does not bring text into the form NFC, as the tokenizer does; export to hf or page"
        )
    if tokenizer.pattern not in PRE:
        raise TokenizerError(
            f"llama.cpp has no name for the tokenizer's split pattern {tokenizer.pattern[:60]!r}; "
            "export to hf, or train with --tokenizer.pattern gpt4 or gpt2"
        )
    return PRE[tokenizer.pattern]


def _merges(tokenizer: Tokenizer) -> list[str]:
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.to_tree()["model"]["merges"]
    if not isinstance(tokenizer, CharTokenizer):
        return []
    pairs: dict[str, None] = {}  # "é" is two bytes: one merge; "😀" four: three
    for spelled in map(spell, map(str.encode, tokenizer.characters)):
        pairs |= dict.fromkeys(f"{spelled[:end]} {spelled[end]}" for end in range(1, len(spelled)))
    return list(pairs)


def from_gguf(settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a file's settings describe; unused rows at the end of the vocabulary are left out.

    Raises TokenizerError: there is no tokenizer, or minigpt cannot run it.
    """
    try:
        if _JSON in settings:
            return from_tree(parse_json(settings[_JSON]))
        if settings.get(f"{_KEY}model") == "llama":
            return _from_scores(settings)
        return from_tree(_tree(settings))
    except TokenizerError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TokenizerError(f"its tokenizer cannot be read ({type(error).__name__}: {error})") from None


def _from_scores(settings: dict[str, Any]) -> Tokenizer:
    """A tokenizer of Llama's family; its bos, eos and unknown tokens get our names."""
    if settings.get(f"{_KEY}add_space_prefix", True) is not True:
        raise TokenizerError("its tokenizer puts no space before a text; minigpt cannot run it")
    tokens, types = settings[f"{_KEY}tokens"], [int(each) for each in settings[f"{_KEY}token_type"]]
    if _USER in types:
        raise TokenizerError(
            f"its tokenizer finds the text {tokens[types.index(_USER)][:60]!r} first; minigpt cannot run it"
        )
    special = {tokens[id_]: id_ for id_, kind in enumerate(types) if kind in (_UNKNOWN, _CONTROL, _UNUSED)}
    names = {"bos": BOS, "unknown": UNK, "eos": EOS}
    ours = {settings.get(f"{_KEY}{name}_token_id", -1): text for name, text in names.items()}
    special = {ours.get(id_) or name: id_ for name, id_ in special.items()}
    return from_scores(tokens, settings[f"{_KEY}scores"], special)


def _tree(settings: dict[str, Any]) -> dict[str, Any]:
    """The content of a tokenizer.json for these settings."""
    kind, pre = settings.get(f"{_KEY}model"), settings.get(f"{_KEY}pre")
    if kind != "gpt2":
        raise TokenizerError(
            f"its tokenizer is of the kind {str(kind)[:60]!r}; minigpt reads gpt2 (byte-level BPE) and llama"
        )
    pattern = _ALSO.get(str(pre)) or next((ours for ours, theirs in PRE.items() if theirs == pre), None)
    if pattern is None:
        raise TokenizerError(
            f"its pre-tokenizer is {str(pre)[:60]!r}; minigpt runs {', '.join([*PRE.values(), *_ALSO])}"
        )
    tokens, types = settings[f"{_KEY}tokens"], [int(each) for each in settings[f"{_KEY}token_type"]]
    count = max((id_ + 1 for id_, each in enumerate(types) if each != _UNUSED), default=0)
    tokens, types = tokens[:count], types[:count]
    named = {name: id_ for id_, (name, each) in enumerate(zip(tokens, types, strict=True)) if each != _NORMAL}
    special = {name for name, id_ in named.items() if types[id_] != _USER}
    vocabulary = {name: id_ for id_, name in enumerate(tokens)}
    if len(vocabulary) != count:
        raise TokenizerError("two of its tokens have the same text")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    merges = settings[f"{_KEY}merges"]
    split = pre_tokenizer_tree(pattern) if merges else byte_level(use_regex=False)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": id_, "content": name, **flags, "special": name in special} for name, id_ in named.items()
        ],
        "pre_tokenizer": split,
        "decoder": byte_level(use_regex=True),
        "model": bpe_model(vocabulary, merges),
    }
