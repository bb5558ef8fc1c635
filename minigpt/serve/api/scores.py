"""Write log-probabilities in both of OpenAI's forms. A token that is half a character shows its bytes."""

import codecs
from collections.abc import Sequence

from minigpt.serve.api.schemas import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from minigpt.serve.engine import Score
from minigpt.tokenizers import Tokenizer

LEAST = -9999.0
"""Used instead of minus infinity, which JSON cannot hold."""


def shown(id_: int, tokenizer: Tokenizer) -> str:
    """A token as text; bytes:\\xe2\\x80 for half a character."""
    spelled = tokenizer.shown(id_, skip_special=False)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


class CompletionScores:
    """The form of /v1/completions, which also gives where in the text each token begins."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.offset = tokenizer, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, scores: Sequence[Score]) -> CompletionLogprobs:
        """Add the scores of the next tokens."""
        found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for id_, logprob, top in scores:
            own = shown(id_, self.tokenizer)
            found.tokens.append(own)
            found.text_offset.append(self.offset)
            self.offset += len(self._decoder.decode(self.tokenizer.shown(id_, skip_special=True)))
            if logprob is None:
                found.token_logprobs.append(None)
                found.top_logprobs.append(None)
                continue
            found.token_logprobs.append(max(logprob, LEAST))
            likeliest = {shown(other, self.tokenizer): max(value, LEAST) for other, value in top}
            found.top_logprobs.append({own: max(logprob, LEAST)} | likeliest)
        return found


def chat_scores(scores: Sequence[Score], tokenizer: Tokenizer) -> ChatLogprobs:
    """The form of /v1/chat/completions."""

    def spelled(id_: int, logprob: float | None) -> TopLogprob:
        spelling = tokenizer.shown(id_, skip_special=False)
        token = spelling.decode(errors="replace")
        return TopLogprob(token=token, logprob=max(logprob or 0.0, LEAST), bytes=[*spelling])

    return ChatLogprobs(
        content=[
            TokenLogprob(**spelled(id_, logprob).model_dump(), top_logprobs=[spelled(*pair) for pair in top])
            for id_, logprob, top in scores
        ]
    )
