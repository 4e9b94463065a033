"""Read and write safetensors checkpoints strictly, one tensor at a time; knows no architecture."""
