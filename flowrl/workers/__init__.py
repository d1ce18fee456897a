"""Scorers in Python environments of their own: the pipe's two ends, reference environments, official packages."""
