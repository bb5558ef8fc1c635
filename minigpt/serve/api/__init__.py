"""Speak OpenAI's HTTP API over the engine: `app.py` puts it together, `schemas.py` describes requests and answers."""
