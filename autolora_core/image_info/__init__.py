"""What a saved picture tells about how it was made: which LoRAs, how strongly, by which files."""
