"""The run folder: what a search leaves behind, and how it is read again."""
