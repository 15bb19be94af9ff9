"""A detector behind HTTP, and a page to look at it."""
