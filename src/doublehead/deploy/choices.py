"""What `predict` can be asked for: names alone, so that `--help` lists them without what does the work."""

PICTURES = "pictures"
FORMATS = (PICTURES, "parquet", "coco")
ENGINES = ("plain", "ray")
