"""Evaluation of any checkpoint, in stages with files between them: generate, score, table; and comparisons."""
