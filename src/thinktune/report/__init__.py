"""Output for people: comparisons, report pages, figures, a preview of the data."""
