"""Ours against its peers, interleaved in one process: what `maskrcnn bench` and `benchmarks/` print."""
