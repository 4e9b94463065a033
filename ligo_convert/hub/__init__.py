"""Talk to the Hugging Face Hub: names, client, downloads, licences, and opening a checkpoint by its name."""
