"""Serve models: `engine/` writes many texts at once, `api/` is OpenAI's HTTP API, `workbench/` is the page."""
