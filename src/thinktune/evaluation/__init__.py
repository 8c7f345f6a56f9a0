"""Scores of models and of result files, and how sure they are."""
