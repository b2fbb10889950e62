"""Measurements; none of them runs in CI."""
