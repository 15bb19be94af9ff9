"""Bulk inference: sources of images, and resumable detection."""
