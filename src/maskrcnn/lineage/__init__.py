"""The way to Mask R-CNN: its ancestors, out of the same parts, trained and scored by the same command."""
