"""Where a trained detector earns its keep."""
