"""Reinforcement: completions of the model in training are drawn, rewarded and trained on."""
