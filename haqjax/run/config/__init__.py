"""What a person may ask of each command."""
