"""The bit specification: what every backend that promises equal bits computes, in plain NumPy."""
