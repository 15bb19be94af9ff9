"""`suggest`: which labels to look at again, and which images to label next."""
