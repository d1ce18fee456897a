"""How the four neural scorers of the shapes world are made; the scorers themselves lie in ``../scorers``."""
