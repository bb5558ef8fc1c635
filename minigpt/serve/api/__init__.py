"""Offer OpenAI's HTTP API: `app.py` puts it together, `schemas.py` describes requests and answers."""
