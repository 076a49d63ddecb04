"""Open a MONAI bundle: what its files say, whether that is safe, and the network and transforms they describe."""
