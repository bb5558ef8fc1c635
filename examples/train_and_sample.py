"""Train a small GPT from Python, measure it, and write with it.

    python examples/train_and_sample.py [STEPS]

The text is `stories`, which minigpt writes itself, so nothing is downloaded.
"""

import sys

from minigpt import GPT, evaluate_run, generate_text, load_config, load_run, train

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200

# Dotted paths, as on the command line; everything else keeps its default.
config = load_config(
    overrides={
        "data.source": "stories",
        "data.stories_count": 1000,
        "model.num_layers": 2,
        "model.embed_dim": 64,
        "train.max_steps": steps,
        "train.batch_size": 8,
        "train.sample_every": 0,
        "schedule.warmup_steps": 10,
    }
)
run = train(config, name="example", quiet=True)  # runs/example; run again, it finds the run finished
print(f"{run.path}: {run.state.step} steps in {run.state.seconds:.0f} s, validation loss {run.state.val_loss:.3f}")

report = evaluate_run(load_run(run.path))  # the best checkpoint, on the whole validation split
low, high = report["confidence_interval"]["bits_per_byte"]
print(f"{report['bits_per_byte']:.3f} bits per byte (95 % in {low:.3f} to {high:.3f})")
print(f"a 5-gram model of the same text: {report['floors']['five_gram']:.3f}")

model = GPT.from_pretrained(run.path)
for temperature in (0.5, 1.0):
    text = generate_text(model, prompt="Once upon a time", max_new_tokens=80, temperature=temperature)
    print(f"\ntemperature {temperature}: Once upon a time{text}")
