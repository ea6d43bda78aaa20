"""Pairs of answers to one prompt, one of which is preferred."""
