"""Shapes: a tiny world of drawn scenes with a programmatic judge and a tiny FLUX pipeline."""
