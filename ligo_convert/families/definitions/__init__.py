"""One file of data for each model family; a family is found by its file being here."""
