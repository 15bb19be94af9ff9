"""Studies: train variants with several seeds on one or more datasets and compare them."""
