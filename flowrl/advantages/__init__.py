"""Advantages: rewards to one number per action. One variant per file."""
