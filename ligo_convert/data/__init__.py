"""Text and image datasets in, tokenised training, validation and test splits out."""
