"""What a run is, how it is trained, and its files."""
