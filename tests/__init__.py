"""Tests of the whole project, room by room."""
