"""Choose a token for each row from its logits, by the row's own settings and seed.

Rows with equal settings go through `generation.sampling` together; a row's token does not depend on the other rows.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.generation.sampling import adjust, sample
from minigpt.serve.engine.job import Job, Score


def choose(logits: Tensor, jobs: Sequence[Job]) -> list[int | UserError]:
    """An id for each row of logits [B, V]; or an error if the row's settings allow no token."""
    groups: dict[object, list[int]] = defaultdict(list)
    for row, job in enumerate(jobs):
        groups[job.kind, job.new if job.adjusts else 0].append(row)
    found: list[int | UserError] = [0] * len(jobs)
    for rows in groups.values():
        for row, id_ in zip(rows, _together(logits[rows], [jobs[row] for row in rows]), strict=True):
            found[row] = id_
    return found


def _together(logits: Tensor, jobs: Sequence[Job]) -> list[int | UserError]:
    """`choose` for jobs with equal settings; if it fails, each job is tried alone."""
    first = jobs[0]
    history = [torch.tensor(job.text.ids if job.text else [], device=logits.device) for job in jobs if first.adjusts]
    try:
        allowed = adjust(logits, history, first.new, first.config, first.rules)
        return sample(allowed, first.config, [job.generator for job in jobs if job.generator]).tolist()
    except UserError as error:
        if len(jobs) == 1:
            return [error]
        return [_together(logits[row : row + 1], [job])[0] for row, job in enumerate(jobs)]


def score(logits: Tensor, ids: Sequence[int], top: int) -> list[Score]:
    """The log-probability of each id under its row of logits [B, V], and the `top` likeliest ids."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0].tolist()
    values, likeliest = logprobs.topk(min(top, logprobs.shape[1]))
    pairs = zip(likeliest.tolist(), values.tolist(), strict=True)
    tops = [list(zip(there, scores, strict=True)) for there, scores in pairs]
    return [Score(*each) for each in zip(ids, own, tops, strict=True)]
