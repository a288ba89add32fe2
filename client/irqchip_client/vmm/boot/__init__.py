"""Boot images of a PC: a file for each format."""
