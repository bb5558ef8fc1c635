"""The server: `engine/` writes texts for many clients at once, `api/` speaks OpenAI's HTTP, `workbench/` is the page."""
