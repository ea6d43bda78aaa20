"""Trained models behind an HTTP server that speaks as OpenAI's does."""
