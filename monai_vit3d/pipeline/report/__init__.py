"""The report of a run: one HTML page, and pictures of labels over their images."""
