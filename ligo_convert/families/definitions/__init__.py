"""The built-in families, one file of data for each: every file in this package defines the family of its name."""
