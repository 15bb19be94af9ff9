"""Deployment: export, server, and inference on many images."""
