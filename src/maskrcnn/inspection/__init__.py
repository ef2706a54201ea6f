"""Looking inside: every step from picture to mask, and why an object was missed. Detecting imports none of this."""
