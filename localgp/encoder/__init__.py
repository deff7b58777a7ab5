"""The encoder with its gates: frames (Equation 4), the masked and gathered path, the packed one for inference."""
