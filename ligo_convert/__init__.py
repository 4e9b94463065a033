"""ligo-convert: grow a small pretrained transformer into a larger one (LiGO, arXiv:2303.00980)."""
