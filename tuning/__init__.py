"""Measures a recipe's settings on the machine at hand, and recommends the best."""
