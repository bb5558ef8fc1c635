"""Find the best run for a time budget on this machine, and predict its loss. The rule: docs/budget.md."""
