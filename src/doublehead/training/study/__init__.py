"""Variants and seeds on one dataset, trained alike and compared."""
