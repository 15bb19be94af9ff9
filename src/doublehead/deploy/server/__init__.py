"""HTTP server of a detector, with a demo page."""
