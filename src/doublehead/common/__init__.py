"""Shared foundations: errors, files, devices, processes, the console."""
