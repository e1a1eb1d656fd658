"""Datasets that users import."""
