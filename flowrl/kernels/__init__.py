"""Kernels: stochastic transitions. One variant per file."""
