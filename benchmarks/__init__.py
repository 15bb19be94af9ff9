"""Time and memory of the package's detectors beside torchvision's Faster R-CNN."""
