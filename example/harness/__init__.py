"""What a demonstration needs around the project: processes, a progress bar, the week to load."""
