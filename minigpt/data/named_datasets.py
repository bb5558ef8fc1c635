"""List the texts that have a name: their addresses, their sha256, and their splits.

The sha256 of text8, enwik8, WikiText-103 and TinyStories are those with which many independent projects check their
downloads. For TinyStories, the Hugging Face hub publishes the same sha256 for that commit (its Git LFS ids).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from minigpt.download import RemoteFile


@dataclass(frozen=True)
class Part:
    """One split of a published text.

    Attributes:
        file: the file to download.
        member: the text's name in the file, if the file is a zip archive.
        start, stop: bytes of the member (default: all).
        split_at: the mark between two documents; "" for a text that is one document.
    """

    file: RemoteFile
    member: str = ""
    start: int = 0
    stop: int | None = None
    split_at: str = ""


def _hundred_million_bytes(name: str, sha256: str) -> dict[str, Part]:
    """The splits of text8 and enwik8: 90, 5 and 5 million bytes (Mikolov et al., 2012; Al-Rfou et al., 2018)."""
    file = RemoteFile(f"{name}/{name}.zip", f"http://mattmahoney.net/dc/{name}.zip", (sha256,))
    borders = {"train": (0, 90_000_000), "val": (90_000_000, 95_000_000), "test": (95_000_000, 100_000_000)}
    return {split: Part(file, name, start, stop) for split, (start, stop) in borders.items()}


_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
# The address in the paper, on Amazon S3, no longer works. This is the same archive on the author's own site.
_WIKITEXT_103 = RemoteFile(
    "wikitext-103/wikitext-103-v1.zip",
    "https://wikitext.smerity.com/wikitext-103-v1.zip",
    ("242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",),
)
_TINYSTORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"

NAMED: Mapping[str, Mapping[str, Part]] = {
    "shakespeare": {
        "train": Part(
            RemoteFile(
                "tinyshakespeare/input.txt",
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                ("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",),
            )
        ),
    },
    "wikitext-2": {
        "train": Part(
            RemoteFile(
                "wikitext-2/train.txt",
                f"{_WIKITEXT}/train.txt",
                (
                    "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
                    # Rebuilt from Hugging Face's copy: the same lines, with the articles in another order. 23 lines
                    # begin with an extra quotation mark, so it has 2,088,651 words; the published file has 2,088,628.
                    "4780fcd561e987ce297832efaa685cc4887effe12eaaa1bfa2955332ce71da6d",
                ),
            )
        ),
        "val": Part(
            RemoteFile(
                "wikitext-2/valid.txt",
                f"{_WIKITEXT}/valid.txt",
                ("f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",),
            )
        ),
        "test": Part(
            RemoteFile(
                "wikitext-2/test.txt",
                f"{_WIKITEXT}/test.txt",
                ("d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",),
            )
        ),
    },
    "wikitext-103": {
        split: Part(_WIKITEXT_103, f"wikitext-103/wiki.{member}.tokens")
        for split, member in (("train", "train"), ("val", "valid"), ("test", "test"))
    },
    "tinystories": {
        "train": Part(
            RemoteFile(
                "tinystories/TinyStoriesV2-GPT4-train.txt",
                f"{_TINYSTORIES}/TinyStoriesV2-GPT4-train.txt",
                ("6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",),
            ),
            split_at="<|endoftext|>",
        ),
        "val": Part(
            RemoteFile(
                "tinystories/TinyStoriesV2-GPT4-valid.txt",
                f"{_TINYSTORIES}/TinyStoriesV2-GPT4-valid.txt",
                ("6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",),
            ),
            split_at="<|endoftext|>",
        ),
    },
    "text8": _hundred_million_bytes("text8", "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232"),
    "enwik8": _hundred_million_bytes("enwik8", "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"),
}
