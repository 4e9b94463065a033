"""A recipe in, a verified output directory out: plan, learn, write, resume."""
