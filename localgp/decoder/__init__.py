"""The decoder with its gates: all tokens at once in training, token by token from caches in a search."""
