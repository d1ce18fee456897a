"""Schedules: which grid steps are stochastic. One variant per file."""
