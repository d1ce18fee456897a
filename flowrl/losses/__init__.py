"""Losses: surrogates on actions. One variant per file."""
