"""Files of weights and of settings, read and never run, whoever wrote them."""
