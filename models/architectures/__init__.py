"""One file, one architecture: the folder is the registry."""
