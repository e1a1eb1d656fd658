"""Datasets and samplers that users import."""
