"""Write the files of an output directory besides the weights (card, provenance, checksums, plots), verify it and publish it."""
