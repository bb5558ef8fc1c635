"""Texts known by name: where they are published, and their sha256."""

from collections.abc import Mapping

from minigpt.download import RemoteFile

_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"

NAMED: Mapping[str, Mapping[str, RemoteFile]] = {
    "shakespeare": {
        "train": RemoteFile(
            "tinyshakespeare/input.txt",
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            ("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",),
        ),
    },
    "wikitext-2": {
        "train": RemoteFile(
            "wikitext-2/train.txt",
            f"{_WIKITEXT}/train.txt",
            (
                "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
                # rebuilt from Hugging Face's copy: the same lines in another article order, 23 of which begin
                # with a quotation mark too many, so it has 2,088,651 words where the published file has 2,088,628
                "4780fcd561e987ce297832efaa685cc4887effe12eaaa1bfa2955332ce71da6d",
            ),
        ),
        "val": RemoteFile(
            "wikitext-2/valid.txt",
            f"{_WIKITEXT}/valid.txt",
            ("f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",),
        ),
        "test": RemoteFile(
            "wikitext-2/test.txt",
            f"{_WIKITEXT}/test.txt",
            ("d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",),
        ),
    },
}
