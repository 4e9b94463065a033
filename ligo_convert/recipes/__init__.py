"""A recipe file in, one checked and frozen `Recipe` out, or an error that names line and column."""
