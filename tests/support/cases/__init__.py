"""One module a family: `CASES` by name, and `FULL_SIZE`, the configs of published checkpoints at their real sizes."""
