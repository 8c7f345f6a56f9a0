"""Predicts the memory, speed and hours of a training before anything is loaded."""
