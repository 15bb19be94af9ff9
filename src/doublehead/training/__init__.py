"""The training loop, its schedule, its distribution and its run folder."""
