"""Data sets in their official on-disk layouts, the synthetic set, transforms, and the order in which training reads."""
