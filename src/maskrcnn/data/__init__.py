"""Labelled pictures: reading them, changing them for training, and handing them out. Knows no network."""
