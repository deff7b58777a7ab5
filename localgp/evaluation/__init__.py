"""Decoding a split of a trained run, scoring it, and what its gates and FLOPs were."""
