"""What depends on a device: layouts and kernels, each with a plain version of the same result."""
