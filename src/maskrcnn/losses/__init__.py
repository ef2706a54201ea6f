"""Learning: the figure again, with matching and sampling between its stages. Detecting imports none of this."""
