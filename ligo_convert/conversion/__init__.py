"""Carry out a recipe: plan, learn the operator, write and verify the output, resume after an interruption."""
