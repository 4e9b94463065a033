"""Turn a pickled checkpoint into safetensors, with the pickle read by a confined process."""
