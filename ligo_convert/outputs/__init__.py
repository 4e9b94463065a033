"""What an output directory holds besides weights: card, provenance, checksums, plots; verify it and publish it."""
