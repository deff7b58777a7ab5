"""Trained models in and out: loading, packing, publishing."""
