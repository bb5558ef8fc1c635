"""Serve models: `engine/` writes many texts at once, `api/` speaks OpenAI's HTTP, `workbench/` is the page."""
