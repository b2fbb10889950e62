"""Tests of the handler room."""
