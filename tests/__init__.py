"""Behaviour, through the public door."""
