"""Plan, train, fine-tune, load, compare, sweep and repeat runs. Here all parts of minigpt come together."""
