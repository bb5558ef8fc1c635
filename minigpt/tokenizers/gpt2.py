"""Make OpenAI's GPT-2 tokenizer from its two published files; they are downloaded once, then used offline."""

import hashlib
import json

from minigpt.download import RemoteFile, locate
from minigpt.errors import DataError, TokenizerError
from minigpt.tokenizers.base import EOS
from minigpt.tokenizers.bpe import BPETokenizer
from minigpt.tokenizers.patterns import unspell

ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
FOLDER = "gpt2-bpe"
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
VOCAB_SIZE = 50257


def gpt2_tokenizer() -> BPETokenizer:
    """GPT-2's tokenizer: 50257 ids, eos 50256.

    The files come from $MINIGPT_DATA/gpt2-bpe, else from the cache ($MINIGPT_CACHE or ~/.cache/minigpt),
    else they are downloaded from OpenAI into the cache. Their sha256 is always checked.

    Raises:
        TokenizerError: the files are altered, or cannot be found or downloaded.
    """
    encoder: dict[str, int] = json.loads(_content("encoder.json"))
    lines = _content("vocab.bpe").decode().splitlines()[1:]  # the first line is "#version: 0.2"
    pieces = [b""] * VOCAB_SIZE
    for word, id_ in encoder.items():
        if word != EOS:
            pieces[id_] = unspell(word)
    merges = [(encoder[left], encoder[right]) for left, right in (line.split(" ") for line in lines if line)]
    return BPETokenizer(pieces, merges, "gpt2", {EOS: encoder[EOS]}, kind="gpt2")


def is_gpt2(tokenizer: BPETokenizer) -> bool:
    """Whether a tokenizer read from a tokenizer.json has GPT-2's merges.

    The text of vocab.bpe follows from the merges, so its published sha256 is compared.
    """
    if tokenizer.vocab_size != VOCAB_SIZE or tokenizer.eos_id != VOCAB_SIZE - 1 or tokenizer.pattern != "gpt2":
        return False
    text = "\n".join(["#version: 0.2", *tokenizer.to_tree()["model"]["merges"], ""])
    return hashlib.sha256(text.encode()).hexdigest() == SHA256["vocab.bpe"]


def _content(name: str) -> bytes:
    """One of the two files, verified."""
    file = RemoteFile(f"{FOLDER}/{name}", ADDRESS + name, (SHA256[name],))
    try:
        return locate(file).read_bytes()
    except DataError as error:
        raise TokenizerError(f"{error}; or use another tokenizer (bpe, char, byte)") from None
