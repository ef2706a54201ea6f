"""The page in a browser: a picture in, every step to its masks out. Needs the extra `serve`."""
