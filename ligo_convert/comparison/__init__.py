"""The `compare` experiment: train one target from several starts and report what each saves."""
