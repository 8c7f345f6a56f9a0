"""Reading the answers to multiple-choice questions."""
