"""What people read: comparisons, report pages, figures, a look at the data."""
