"""Plots of the page, one module each."""
