"""Evaluation: images of a finished model, what scorers and judges say of them, and the tables."""
