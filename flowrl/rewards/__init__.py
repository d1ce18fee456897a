"""Scorers: (image, prompt) to a number. One scorer per file."""
