"""OpenAI's HTTP API over the engine: `app.py` puts it together, `schemas.py` says what is asked and answered."""
