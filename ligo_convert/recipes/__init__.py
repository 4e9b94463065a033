"""Load and check recipe files; errors name line and column."""
