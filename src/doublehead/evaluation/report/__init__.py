"""Report of `evaluate`: from scores to decisions, as a page, JSON and CSV."""
