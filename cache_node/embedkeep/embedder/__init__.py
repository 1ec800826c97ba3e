"""Runs the model."""
