"""The budget dial: which run fits into ten minutes here, and what loss to expect of it. The rule: docs/budget.md."""
