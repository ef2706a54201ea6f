"""From labelled pictures to weights: recipe, loop, checkpoints and the run's folder."""
