"""Speech foundation models, a folder for each family."""
