"""Continuations: how a noisy state is denoised to the end. One variant per file."""
