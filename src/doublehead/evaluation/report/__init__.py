"""What `evaluate` shows: from scores to decisions, as a page, as JSON and as CSV."""
