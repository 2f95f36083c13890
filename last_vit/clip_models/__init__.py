"""CLIP towers of open_clip: their files, what was trained into them, dense features, text."""
