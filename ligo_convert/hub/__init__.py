"""The Hugging Face Hub as a source: names, client, downloads, licences; a model name in, an open checkpoint out."""
