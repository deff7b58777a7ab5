"""What `scripts/mutate_inputs.py` damages, and how."""
