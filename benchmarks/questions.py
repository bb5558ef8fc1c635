"""Count how many held-out questions about story openings a run answers, before and after `minigpt finetune`.

    minigpt data questions --count 4000 --out questions.jsonl
    minigpt finetune runs/demo questions.jsonl --name answers
    python benchmarks/questions.py runs/demo runs/answers --known questions.jsonl

Answers are greedy and count if they are exactly the expected ones. Questions in --known are left out.
"""

import argparse
import json
from pathlib import Path

from minigpt.data.stories.questions import questions
from minigpt.errors import RunError
from minigpt.generation.text import complete
from minigpt.runs.load import load_run
from minigpt.tokenizers.chat_template import Template, encode_question, load_template


def accuracy(run_path: str, asked: list[list[dict[str, str]]], batch: int) -> float:
    """Share of the chats for which the run writes the last message."""
    run = load_run(run_path, "cpu")
    try:
        template = load_template(run_path)
    except RunError:  # not tuned on chats: use the default template
        template = Template()
    right = 0
    for first in range(0, len(asked), batch):
        some = asked[first : first + batch]
        prompts = [encode_question(chat[:-1], template, run.tokenizer) for chat in some]
        answers = complete(run.model, prompts, run.tokenizer, temperature=0.0, max_new_tokens=40, stop="\n")
        right += sum(of[0].text.strip() == chat[-1]["content"] for of, chat in zip(answers, some, strict=True))
    return right / len(asked)


def main() -> None:
    """Ask all questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--known", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--batch", type=int, default=50)
    args = parser.parse_args()
    known = {json.loads(line)["messages"][0]["content"] for line in args.known.read_text().splitlines()}
    chats = [chat["messages"] for chat in questions(args.count + len(known), seed=12345)]
    asked = [chat for chat in chats if chat[0]["content"] not in known][: args.count]
    for run in args.runs:
        print(f"{run}: {accuracy(run, asked, args.batch):.1%} of {len(asked)} held-out questions", flush=True)


if __name__ == "__main__":
    main()
