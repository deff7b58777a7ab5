"""What `scripts/gpu_check.py` checks and times on a GPU."""
