"""The data sets, and batches of them."""
