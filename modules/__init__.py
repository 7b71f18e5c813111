"""Cyclical learning rates: a reproduction study of arXiv:1506.01186 and the parts it is made of."""
