"""OWSM: ESPnet's S2T models."""
