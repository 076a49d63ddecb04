"""Limits on what a file may ask for; quick to import."""

MAX_VOXELS = 2**30  # of an image, unless the caller allows more
