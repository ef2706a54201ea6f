"""A finished detector rewritten for one machine: folded, packed, in another precision. `model/` stays plain."""
