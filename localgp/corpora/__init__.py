"""Corpora: reading, checking and preparing recordings with their texts; what a row is."""
